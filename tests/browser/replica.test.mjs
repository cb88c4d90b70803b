// The client's replica and token arithmetic, without a browser: node --test tests/browser/
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Replica, covers, view } from '../../static/rowcast.js'

const row = (key, value, operation = 'insert', more) => ({ type: 'public.t', key, value, headers: { operation, ...more } })
const control = name => ({ headers: { control: name } })
const state = replica => Object.fromEntries(replica.rows)

function filled() {
  const replica = new Replica()
  replica.apply([control('snapshot-start'), row('1', 'a'), row('2', 'b'), control('snapshot-end')], 'e.v.a')
  return replica
}

test('a snapshot in pieces is a state only when its last piece is here', () => {
  const replica = new Replica()
  replica.apply(JSON.stringify([control('snapshot-start'), row('1', 'a')]), '0')
  replica.apply(JSON.stringify([row('2', 'b')]), '0')
  assert.equal(replica.ready, false)
  assert.deepEqual(state(replica), {})
  const changes = replica.apply(JSON.stringify([row('3', 'c'), control('snapshot-end')]), 'e.v.a')
  assert.equal(replica.ready, true)
  assert.deepEqual(state(replica), { 1: 'a', 2: 'b', 3: 'c' })
  assert.deepEqual(changes, [], 'a snapshot is not a change')
  assert.equal(replica.token, 'e.v.a')
})

test('an empty snapshot is a state', () => {
  const replica = new Replica()
  replica.apply([control('snapshot-start'), control('snapshot-end')], 'e.v.a')
  assert.equal(replica.ready, true)
  assert.equal(replica.rows.size, 0)
})

test('the old rows stay while a new snapshot arrives, then go in one step', () => {
  const replica = filled()
  replica.apply([control('reset'), control('snapshot-start'), row('9', 'z')], '0')
  assert.deepEqual(state(replica), { 1: 'a', 2: 'b' })
  assert.equal(replica.token, 'e.v.a', 'the token is that of the rows')
  replica.apply([control('snapshot-end')], 'e.v.b')
  assert.deepEqual(state(replica), { 9: 'z' })
  assert.equal(replica.generation, 2)
})

test('a heartbeat between two pieces changes nothing', () => {
  const replica = filled()
  replica.apply([control('reset'), control('snapshot-start'), row('9', 'z')], '0')
  replica.apply([], '0')
  replica.apply([], 'e.v.b')
  assert.deepEqual(state(replica), { 1: 'a', 2: 'b' })
  assert.equal(replica.token, 'e.v.a')
})

test('a piece with the reserved id is never a state, and never a place to resume from', () => {
  const replica = filled()
  replica.apply([control('reset')], '0')
  assert.deepEqual(state(replica), { 1: 'a', 2: 'b' })
  replica.apply([control('snapshot-start'), row('9', 'z'), control('snapshot-end')], 'e.v.b')
  assert.deepEqual(state(replica), { 9: 'z' })
  replica.apply([], '0')
  assert.equal(replica.token, 'e.v.b')
})

test('a snapshot that was cut leaves no trace', () => {
  const replica = filled()
  replica.apply([control('reset'), control('snapshot-start'), row('9', 'z')], '0')
  replica.cut()
  replica.apply([row('2', 'B', 'update')], 'e.v.b')
  assert.deepEqual(state(replica), { 1: 'a', 2: 'B' })
})

test('a snapshot that starts over forgets its first try', () => {
  const replica = new Replica()
  replica.apply([control('snapshot-start'), row('1', 'a')], '0')
  replica.apply([control('snapshot-start'), row('2', 'b'), control('snapshot-end')], 'e.v.a')
  assert.deepEqual(state(replica), { 2: 'b' })
})

test('a reset in the middle of a transaction drops what was before it', () => {
  const replica = filled()
  const changes = replica.apply([row('3', 'c'), control('reset'), row('4', 'd')], 'e.v.b')
  assert.deepEqual(state(replica), { 4: 'd' })
  assert.deepEqual(changes.map(change => change.key), ['4'])
  assert.equal(replica.generation, 2)
})

test('insert and update are alike, delete removes', () => {
  const replica = filled()
  const changes = replica.apply(
    [row('7', 'x', 'update', { txid: '5', timestamp: 'now' }), row('1', 'A'), row('2', undefined, 'delete'), row('8', undefined, 'delete')],
    'e.v.b',
  )
  assert.deepEqual(state(replica), { 1: 'A', 7: 'x' })
  assert.deepEqual(changes[0], { type: 'public.t', key: '7', value: 'x', operation: 'update', txid: '5', timestamp: 'now' })
  assert.equal(replica.generation, 1, 'changes are not a replacement')
})

test('a row that is too large keeps its old value and is marked until it is known again', () => {
  const replica = filled()
  replica.apply([row('1', undefined, 'update', { too_large: true })], 'e.v.b')
  assert.equal(replica.rows.get('1'), 'a')
  assert.deepEqual([...replica.outdated], ['1'])
  replica.apply([row('1', 'small', 'update')], 'e.v.c')
  assert.equal(replica.outdated.size, 0)
  replica.apply([row('1', undefined, 'update', { too_large: true })], 'e.v.d')
  replica.apply([row('1', undefined, 'delete')], 'e.v.e')
  assert.equal(replica.outdated.size, 0)
})

test('what a state had already is no change when it is told once more', () => {
  const replica = new Replica()
  const state = [row('1', 'a', 'insert', { etag: 'v1' }), row('2', 'b', 'insert', { etag: 'w1' })]
  replica.apply([control('snapshot-start'), ...state, control('snapshot-end')], 'e.v.64') // everything before 100
  const told = [
    row('1', 'a', 'update', { etag: 'v1', txid: '99' }),
    row('3', undefined, 'delete', { txid: '99' }),
    // Gone by a policy, under the transaction that wrote it last.
    row('2', undefined, 'delete', { txid: '99' }),
    // The same row again, written anew.
    row('1', 'a', 'update', { etag: 'v1', txid: '100' }),
  ]
  assert.deepEqual(replica.apply(told, 'e.v.65').map(({ key, txid }) => [key, txid]), [['2', '99'], ['1', '100']])
  assert.deepEqual([...replica.rows], [['1', 'a']])
})

test('a row has the version of its last event, and none once it is unknown or gone', () => {
  const replica = new Replica()
  replica.apply([control('snapshot-start'), row('1', 'a', 'insert', { etag: 'v1' }), row('2', 'b', 'insert', { etag: 'w1' }), control('snapshot-end')], 'e.v.a')
  assert.deepEqual(Object.fromEntries(replica.etags), { 1: 'v1', 2: 'w1' })
  const [change] = replica.apply([row('1', 'A', 'update', { etag: 'v2' })], 'e.v.b')
  assert.equal(change.etag, 'v2')
  assert.equal(replica.etags.get('1'), 'v2')
  replica.apply([row('1', undefined, 'update', { too_large: true }), row('2', undefined, 'delete')], 'e.v.c')
  assert.equal(replica.etags.size, 0)
})

test('a message of a channel is passed on and not kept', () => {
  const replica = new Replica()
  const changes = replica.apply([{ type: 'lobby', value: { a: 1 }, headers: { operation: 'message', txid: '9' } }], 'e.v.b')
  assert.equal(changes[0].operation, 'message')
  assert.equal(replica.rows.size, 0)
})

test('hostile strings are only strings', () => {
  const replica = new Replica()
  const strings = ['__proto__', 'constructor', '</script>', '\u0000', '\u2028\r\n\ndata: x', '"a"/"b"', '', '\ud800', '0']
  replica.apply(JSON.stringify([control('snapshot-start'), ...strings.map(text => row(text, { text })), control('snapshot-end')]), 'e.v.a')
  assert.equal(replica.rows.size, strings.length)
  for (const text of strings) assert.equal(replica.rows.get(text).text, text)
  assert.equal({}.text, undefined, 'no prototype was touched')
  replica.apply([row('__proto__', undefined, 'delete')], 'e.v.b')
  assert.equal(replica.rows.has('__proto__'), false)
})

test('a token covers what was done in its snapshot, and nothing else', () => {
  const token = 'epoch.view.64-1-1e' // xmax 100; 99 and 70 were in progress
  for (const done of ['98', '71', '69', '1']) assert.equal(covers(token, done), true, done)
  for (const not of ['99', '70', '100', '101', '18446744073709551615']) assert.equal(covers(token, not), false, not)
})

test('a token counts beyond what a number can hold', () => {
  const token = 'e.v.20000000000002-1' // 2^53 + 2; 2^53 + 1 in progress
  assert.equal(covers(token, '9007199254740992'), true)
  assert.equal(covers(token, '9007199254740993'), false)
  assert.equal(covers(token, '9007199254740994'), false)
})

test('no token covers nothing', () => {
  assert.equal(covers('0', '1'), false)
  assert.equal(covers('', '1'), false)
  assert.equal(covers(undefined, '1'), false)
})

test('a token whose time is over is not used again and again', async () => {
  const person = globalThis.btoa(JSON.stringify({ sub: 'ann' }))
  const asked = []
  let connections = 0
  globalThis.EventSource = class extends EventTarget {
    readyState = 1
    constructor() {
      super()
      connections++
      setTimeout(() => this.dispatchEvent(Object.assign(new Event('control'), { data: JSON.stringify({ upToDate: false, error: { code: 'PGRST303' } }), lastEventId: '0' })))
    }
    close() {
      this.readyState = 2
    }
  }
  globalThis.fetch = async () => Response.json({ ticket: 't' })
  const token = async refused => asked.push(refused) && `a.${person}.b`
  const cards = view('http://relay.example/rest/v1/cards', { token })
  const stop = cards.on('status', () => {})
  for (let tries = 0; connections < 2 && tries < 400; tries++) {
    await new Promise(done => setTimeout(done, 25))
  }
  const [begun, before] = [performance.now(), connections]
  await new Promise(done => setTimeout(done, 600))
  stop()
  assert.ok(connections >= 2, 'it comes back with a new token')
  // Pauses grow from a few hundred milliseconds.
  const most = 4 * ((performance.now() - begun) / 600)
  assert.ok(connections - before < most, `${connections - before} connections more`)
  assert.ok(asked.includes(`a.${person}.b`), 'the page was told which token is over')
})
