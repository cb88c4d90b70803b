// The client's streams and writes before a relay that is only played, on a clock of their own:
// node --test tests/browser/
import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'
import { RowcastError, channel, view, write } from '../../static/rowcast.js'

/** Each stream that was opened, the latest one last. */
let streams
const { fetch, EventSource, AbortSignal } = globalThis

class Played extends EventTarget {
  readyState = 0
  constructor(url) {
    super()
    this.url = url
    this.at = Date.now()
    streams.push(this)
  }

  #event(name, more) {
    const event = Object.assign(new Event(name), more)
    this.dispatchEvent(event)
    this[`on${name}`]?.(event)
  }

  open() {
    this.readyState = 1
    this.#event('open')
  }

  say(name, data, lastEventId = '0') {
    this.#event(name, { data: JSON.stringify(data), lastEventId })
  }

  /** An end of the connection, after which it comes back by itself; or a refusal, which it does not survive. */
  fail(refused = false) {
    this.readyState = refused ? 2 : 0
    this.#event('error')
  }

  close() {
    this.readyState = 2
  }

  /** Opens with these rows, by key. */
  show(rows, more = {}) {
    this.open()
    const row = ([key, value]) => ({ key, value, headers: { operation: 'insert', etag: `v${key}`, ...(value === undefined && { too_large: true }) } })
    this.say('data', [{ headers: { control: 'snapshot-start' } }, ...Object.entries(rows).map(row), { headers: { control: 'snapshot-end' } }], 'e.v.a')
    this.say('control', { upToDate: true, lag_ms: 0, ...more }, 'e.v.a')
  }
}

const latest = () => streams.at(-1)
const stops = []

/** Lets messages arrive; they need no time. */
const settle = async () => {
  for (let turns = 0; turns < 6; turns++) await new Promise(done => setImmediate(done))
}

/** Lets time pass. */
async function pass(ms) {
  for (let passed = 0; passed < ms; passed += 100) {
    mock.timers.tick(100)
    await settle()
  }
}

/** A view that somebody looks at, and what its page was shown. */
async function look(options) {
  const cards = view('http://relay.example/rest/v1/cards', options)
  const shown = []
  stops.push(() => cards.close(), cards.subscribe(rows => shown.push(rows)))
  await settle()
  return { cards, shown }
}

const tokenOf = name => `a.${btoa(JSON.stringify({ sub: name }))}.b`
const never = signal => new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)))

beforeEach(() => {
  streams = []
  globalThis.EventSource = Played
  globalThis.location = new URL('http://page.example/board')
  globalThis.fetch = async () => Response.json({ ticket: 't' })
  mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'], now: 1e12 })
})
afterEach(async () => {
  for (const stop of stops.splice(0)) stop()
  await settle()
  mock.timers.reset()
  delete globalThis.SharedWorker
  delete globalThis.addEventListener
  delete globalThis.document
  delete globalThis.location
  Object.assign(globalThis, { fetch, EventSource, AbortSignal })
})

/* ---- coming back ---------------------------------------------------------------------------- */

test('a proxy that refuses once and then says nothing does not end the stream', async () => {
  const { cards } = await look()
  latest().show({ 1: 'a' })
  globalThis.fetch = (_, { signal }) => never(signal)
  latest().fail(true)
  await pass(15_000)
  assert.ok(streams.length > 1, 'it has called again')
  latest().show({ 1: 'b' })
  await settle()
  assert.equal(cards.status, 'live')
  assert.equal(cards.rows.get('1'), 'b')
})

test('a gateway that wants fewer requests does not end the stream, whatever else it says', async () => {
  for (const status of [408, 425, 429, 403]) {
    const { cards } = await look()
    globalThis.fetch = async () => Response.json({ code: 8, message: 'no' }, { status })
    const before = streams.length
    latest().fail(true)
    await pass(5_000)
    assert.deepEqual([cards.status, streams.length > before, cards.error.message], [status === 403 ? 'closed' : 'stale', status !== 403, 'no'], status)
    cards.close()
  }
})

test('a page that gets no token says why, and asks again', async () => {
  let failures = 2
  const token = async () => {
    if (failures-- > 0) throw new RowcastError({ message: 'slow down', status: 429 })
    return tokenOf('ann')
  }
  const { cards } = await look({ token })
  assert.deepEqual([cards.status, cards.error.message, streams.length], ['stale', 'slow down', 0])
  await pass(5_000)
  latest().show({ 1: 'a' })
  await settle()
  assert.deepEqual([cards.status, cards.error], ['live', null])
})

/** What a page hears of its window. */
function hearing() {
  const heard = new EventTarget()
  globalThis.addEventListener = (...listening) => heard.addEventListener(...listening)
  globalThis.document = heard
  return heard
}

for (const opened of [false, true]) {
  test(`a stream that is neither refused nor ended, and of which nothing comes${opened ? ' though it was opened' : ''}, is told of`, async () => {
    const { cards, shown } = await look()
    const told = []
    stops.push(cards.on('status', (status, error) => told.push([status, error?.message])))
    if (opened) latest().open()
    await pass(10_000)
    assert.equal(cards.status, 'connecting')
    await pass(20_000)
    assert.deepEqual(told, [['stale', 'the relay is silent']])
    assert.ok(streams.length > 1)
    latest().show({ 1: 'a' })
    await settle()
    assert.deepEqual([cards.status, cards.error, shown], ['live', null, [['a']]])
  })
}

test('a view in a worker, which has no document, is opened there', async () => {
  globalThis.addEventListener = () => 0
  const { shown } = await look()
  latest().show({ 1: 'a' })
  await settle()
  assert.deepEqual(shown, [['a']])
})

test('a token may be given at once, without a promise', async () => {
  const { cards, shown } = await look({ token: () => tokenOf('Ann') })
  latest().show({ 1: 'a' })
  await cards.renew()
  await settle()
  assert.deepEqual(shown, [['a']])
})

test('a sign-in that names somebody in each token anew is opened with the one it gave, and not asked in a circle', async () => {
  let asked = 0
  const { cards, shown } = await look({ token: () => tokenOf(`session ${++asked}`) })
  assert.deepEqual([streams.length, asked], [1, 1])
  latest().show({ 1: 'a' })
  await settle()
  assert.deepEqual([cards.status, shown], ['live', [['a']]])
})

test('a sign-in that names somebody in each token anew is not asked all the time while the relay is away', async () => {
  let asked = 0
  const { cards } = await look({ token: () => tokenOf(`session ${++asked}`) })
  latest().show({ 1: 'a' })
  await settle()
  const { fetch } = globalThis
  globalThis.fetch = async () => { throw new TypeError('nobody is there') }
  latest().fail()
  await pass(30_000)
  assert.ok(asked < 40, `asked ${asked} times in 30 s`)
  globalThis.fetch = fetch
  await pass(5_000)
  latest().show({ 1: 'b' })
  await settle()
  assert.equal(cards.status, 'live')
})

test('a token that is no text is told of', async () => {
  let asked = 0
  const token = async () => ++asked && { access_token: 'a.b.c' }
  const { cards } = await look({ token })
  await pass(1_000)
  assert.deepEqual([cards.status, streams.length, asked], ['stale', 0, 1])
  assert.match(cards.error.message, /a token is a text.* object/)
  await assert.rejects(write('POST', '/rest/v1/cards', {}, { token }), cards.error)
})

test('whoever listens to what there is not, or with no function, is told at once', async () => {
  const { cards } = await look()
  assert.throws(() => cards.on('changes', () => {}), { name: 'TypeError', message: /on\('changes', function\)/ })
  assert.throws(() => cards.on('change'), { name: 'TypeError', message: /on\('change', undefined\)/ })
})

test('what was stopped before it began is not opened, and nobody waits for it', async () => {
  const { cards, shown } = await look({ signal: AbortSignal.abort() })
  assert.equal(streams.length, 0)
  assert.deepEqual([cards.status, shown.length], ['closed', 0])
  await assert.rejects(cards.synced('7'), { message: 'the stream is closed' })
  const { cards: open } = await look()
  latest().show({ 1: 'a' })
  await settle()
  await assert.rejects(open.synced('99999999', { signal: AbortSignal.abort() }), { name: 'AbortError' })
})

test('where there is no page, what is missing is named', async () => {
  delete globalThis.location
  const told = { name: 'TypeError', message: /is no whole URL.*the address of the relay/ }
  assert.throws(() => view('/rest/v1/cards'), told)
  assert.throws(() => channel('lobby'), told)
  await assert.rejects(write('POST', '/rest/v1/cards', {}), told)
  delete globalThis.EventSource
  const cards = view('http://relay.example/rest/v1/cards')
  assert.throws(() => cards.subscribe(() => {}), { name: 'TypeError', message: /no EventSource here/ })
})

test('a channel is opened by its name, and by its URL at a relay elsewhere or below a path', async () => {
  const urls = ['lobby', 'a/b', 'tv/channels/7', 'http://relay.example/channels/lobby', '/live/channels/lobby', '/channels/lobby'].map(name => channel(name).url)
  const here = ['lobby', 'a%2Fb', 'tv%2Fchannels%2F7'].map(name => `http://page.example/channels/${name}`)
  assert.deepEqual(urls, [...here, 'http://relay.example/channels/lobby', 'http://page.example/live/channels/lobby', here[0]])
})

test('whoever comes back to a page does not wait for the rest of a pause', async () => {
  const heard = hearing()
  await look({ token: async () => tokenOf('ann') })
  for (let tries = 0; tries < 6; tries++) {
    latest().fail()
    await pass(5_200)
  }
  const tries = streams.length
  latest().fail()
  heard.dispatchEvent(new Event('online'))
  await pass(200)
  assert.equal(streams.length, tries + 1)
})

test('a pause that the relay asks for is kept, by those with a token, too', async () => {
  const heard = hearing()
  const { cards } = await look({ token: async () => tokenOf('ann') })
  const crowded = { upToDate: false, error: { code: 'RCH08', message: 'too many' }, retry_ms: 15_000 }
  for (let tries = 1; tries < 4; tries++) {
    assert.equal(streams.length, tries)
    const refused = latest()
    refused.open()
    refused.say('control', crowded)
    refused.fail()
    // Looking at another window does not make room.
    heard.dispatchEvent(new Event('visibilitychange'))
    await pass(14_000)
    assert.equal(streams.length, tries, 'it waits')
    await pass(2_000)
  }
  assert.equal(cards.error.message, 'too many')
  latest().open()
  latest().say('control', { upToDate: true, closing: true, retry_ms: 3_000 })
  latest().fail()
  await pass(2_500)
  assert.equal(streams.length, 4, 'a relay that stops asks, too')
  await pass(1_000)
  assert.equal(streams.length, 5)
})

test('a relay is not silent while a pause lasts that it asked for', async () => {
  const { cards } = await look()
  latest().show({ 1: 'a' })
  latest().say('control', { upToDate: true, closing: true, retry_ms: 30_000 })
  latest().fail()
  await pass(40_000)
  assert.deepEqual([streams.length, cards.error?.message], [1, undefined], 'the browser comes back by itself')
  await pass(20_000)
  assert.deepEqual([streams.length, cards.error?.message], [2, 'the relay is silent'])
})

test('a stream that is refused again and again is asked for less and less often', async () => {
  await look({ token: async () => tokenOf('ann') })
  const end = Date.now() + 60_000
  while (Date.now() < end) {
    const refused = latest()
    if (refused.readyState === 0) {
      refused.open()
      refused.say('control', { upToDate: false, error: { code: '42501', message: 'no' } })
      refused.fail()
    }
    await pass(100)
  }
  assert.ok(streams.length < 30, `${streams.length} in a minute`)
})

/* ---- what is shown -------------------------------------------------------------------------- */

test('a row that was too large is fetched at the next beat when it could not be fetched at once', async () => {
  globalThis.AbortSignal = Object.assign(() => {}, { timeout: undefined })
  const asked = []
  globalThis.fetch = async url => {
    asked.push(url)
    if (asked.length === 1) throw new TypeError('no network')
    if (asked.length === 2) return new Response('bad gateway', { status: 502 })
    return Response.json(['a large one'])
  }
  const { cards } = await look({ key: 'id' })
  latest().show({ 7: undefined })
  await settle()
  assert.equal(asked.length, 1)
  latest().say('data', [], 'e.v.b')
  await settle()
  assert.equal(asked.length, 1, 'not with each event')
  await pass(5_000)
  assert.equal(asked.length, 2)
  assert.equal(cards.rows.has('7'), false)
  await pass(5_000)
  assert.equal(cards.rows.get('7'), 'a large one')
  assert.equal(cards.outdated.size, 0)
  await pass(10_000)
  assert.equal(asked.length, 3)
})

test('a row that is too large in a new state is fetched for that one', async () => {
  const answers = []
  globalThis.fetch = () => new Promise(done => answers.push(rows => done(Response.json(rows))))
  const { cards } = await look({ key: 'id' })
  latest().show({ 7: undefined })
  latest().show({ 7: undefined })
  await settle()
  assert.equal(answers.length, 2)
  answers[0](['of the old state'])
  await settle()
  assert.equal(cards.rows.has('7'), false)
  answers[1](['of the new state'])
  await settle()
  assert.equal(cards.rows.get('7'), 'of the new state')
})

test('a row whose question the relay does not understand is not asked for again', async () => {
  let asked = 0
  globalThis.fetch = async () => ++asked && Response.json({ code: '42703' }, { status: 400 })
  await look({ key: 'no_such_column' })
  latest().show({ 7: undefined })
  await pass(20_000)
  assert.equal(asked, 1)
})

test('a row that was too large is fetched with the token of its stream, unless that is no good any more', async () => {
  let asked = 0
  const refused = []
  globalThis.fetch = async (url, { headers: { authorization } }) => {
    if (url.endsWith('/tickets')) return Response.json({ ticket: 't' })
    return refused.includes(authorization) ? Response.json({}, { status: 401 }) : Response.json([authorization])
  }
  // The next one is somebody else's.
  const { cards } = await look({ key: 'id', token: () => tokenOf(`session ${++asked}`) })
  latest().show({ 7: undefined })
  await settle()
  const first = `Bearer ${tokenOf('session 1')}`
  assert.deepEqual([streams.length, asked, cards.rows.get('7')], [1, 1, first])
  cards.close()
  let n = 0
  const ann = () => `${n++}.${btoa(JSON.stringify({ sub: 'ann' }))}.b`
  const anns = await look({ key: 'id', token: ann })
  refused.push(`Bearer 0.${btoa(JSON.stringify({ sub: 'ann' }))}.b`)
  latest().show({ 7: undefined })
  await settle()
  assert.match(anns.cards.rows.get('7'), /^Bearer 1\./)
})

for (const how of ['the page says so', 'the stream finds out']) {
  test(`rows of one person are gone before the next one's are here, when ${how}`, async () => {
    let name = 'ann'
    const { cards, shown } = await look({ token: async () => tokenOf(name) })
    latest().show({ 1: 'for Ann alone' })
    await settle()
    assert.deepEqual(shown.at(-1), ['for Ann alone'])
    assert.equal(cards.ready, true)
    name = 'bob'
    if (how === 'the page says so') await cards.renew()
    else {
      latest().fail()
      await pass(1_000)
    }
    await settle()
    assert.deepEqual(shown.at(-1), [])
    assert.equal(cards.rows.size, 0)
    assert.equal(cards.etag('1'), undefined)
    assert.equal(cards.since, null)
    assert.equal(cards.ready, false)
    latest().show({ 2: 'for Bob' })
    await settle()
    assert.deepEqual(shown.at(-1), ['for Bob'])
  })
}

test('the same person with a new token keeps what is shown', async () => {
  let n = 0
  const { cards, shown } = await look({ token: async () => `${n++}.${btoa(JSON.stringify({ sub: 'ann', exp: n }))}.b` })
  latest().show({ 1: 'a' })
  await settle()
  await cards.renew()
  await settle()
  assert.deepEqual(shown, [['a']])
})

/* ---- the worker ----------------------------------------------------------------------------- */

test('a worker that cannot be loaded keeps no later view waiting', async () => {
  const handed = []
  globalThis.SharedWorker = class extends EventTarget {
    port = { postMessage: (request, [port]) => handed.push(port) }
    constructor() {
      super()
      // A browser tells of it once.
      setImmediate(() => (this.onerror?.(), this.dispatchEvent(new Event('error'))))
    }
  }
  // A page of its own, which does without from then on.
  const { view } = await import('../../static/rowcast.js?unloadable')
  for (const opened of [1, 2]) {
    const cards = view(`http://relay.example/rest/v1/cards?id=eq.${opened}`)
    stops.push(cards.subscribe(() => {}))
    await settle()
    assert.equal(streams.length, opened, 'the page opens it by itself, and at once')
  }
  for (const port of handed) port.close()
})

test('a worker that was only slow to start gets the stream as soon as it is there', async () => {
  const handed = []
  let listening = 0
  globalThis.SharedWorker = class extends EventTarget {
    port = { postMessage: (request, [port]) => handed.push(port) }
    addEventListener(name, listener, { signal } = {}) {
      listening++
      signal?.addEventListener('abort', () => listening--)
    }
  }
  const { cards } = await look()
  assert.equal(handed.length, 1)
  await pass(3_100)
  assert.equal(streams.length, 1, 'the page does it alone')
  latest().show({ 1: 'by the page' })
  await settle()
  assert.equal(cards.status, 'live')

  const facts = { version: 2, ready: false, token: '0', outdated: new Set(), fresh: 0, behind: false, error: null }
  handed[0].postMessage(facts)
  await settle()
  assert.equal(handed.length, 2, 'the worker has it')
  handed[1].postMessage({ ...facts, ready: true, token: 'e.v.a', fresh: Date.now(), rows: new Map([['1', 'by the worker']]), etags: new Map() })
  await pass(4_000)
  assert.equal(cards.rows.get('1'), 'by the worker')
  assert.equal(streams.length, 1)
  assert.equal(latest().readyState, 2, 'and the page has let go')
  assert.equal(listening, 1, 'one listener, however often it was opened')
  for (const port of handed) port.close()
})

/* ---- writes --------------------------------------------------------------------------------- */

/** Plays a relay that answers writes in this order; gives the requests. */
function answering(...answers) {
  const requests = []
  globalThis.fetch = async (url, request) => {
    requests.push({ url, ...request, once: request.headers['idempotency-key'] })
    const answer = answers.shift()
    if (!answer) throw new TypeError('the connection broke')
    return answer
  }
  return requests
}

/** A write to its end, however long it waits. */
async function ended(writing) {
  const ending = writing.then(value => ({ value }), error => ({ error }))
  await settle()
  await pass(2_000)
  return ending
}

test('a write without an answer is sent once more, under the same name', async () => {
  const requests = answering(null, Response.json([{ id: 1 }], { headers: { 'rowcast-txid': '5' } }))
  const { value } = await ended(write('POST', '/rest/v1/cards', { title: 'a' }))
  assert.deepEqual(value, { rows: [{ id: 1 }], txid: '5' })
  assert.equal(requests.length, 2)
  assert.match(requests[0].once, /^[\w-]{32,}$/)
  assert.equal(requests[1].once, requests[0].once)
  assert.equal(requests[1].body, requests[0].body)
})

test('an answer that breaks off is none', async () => {
  const requests = answering(new Response('[{"id"', { status: 201 }), Response.json([{ id: 1 }]))
  const { value } = await ended(write('POST', '/rest/v1/cards', {}))
  assert.deepEqual(value.rows, [{ id: 1 }])
  assert.equal(requests[1].once, requests[0].once)
})

test('what a gateway says that has no answer is none', async () => {
  const gateway = status => new Response('<html>', { status })
  const requests = answering(gateway(502), Response.json([{ id: 1 }]), gateway(504), gateway(504))
  const { value } = await ended(write('POST', '/rest/v1/cards', {}))
  assert.deepEqual(value.rows, [{ id: 1 }])
  assert.equal(requests[1].once, requests[0].once)
  const { error } = await ended(write('PATCH', '/rest/v1/cards?id=eq.1', {}))
  assert.deepEqual([requests.length, error.status, error.sent], [4, 0, true])
})

test('a relay that finds no connection to its database has written nothing', async () => {
  const requests = answering(Response.json({ code: 'PGRST003', message: 'busy' }, { status: 504 }))
  const { error } = await ended(write('POST', '/rest/v1/cards', {}))
  assert.deepEqual([requests.length, error.code, error.sent], [1, 'PGRST003', undefined])
})

test('after two tries without an answer nobody knows, and the same write can be sent again', async () => {
  const requests = answering()
  const { error } = await ended(write('PATCH', '/rest/v1/cards?id=eq.1', {}, { once: 'mine' }))
  assert.deepEqual([error.name, error.status, error.sent], ['RowcastError', 0, true])
  assert.deepEqual(requests.map(({ once }) => once), ['mine', 'mine'])
})

test('a write that is sent again with another token keeps its name, and no two writes share one', async () => {
  const refusal = () => Response.json({ code: 'PGRST301' }, { status: 401 })
  const requests = answering(refusal(), Response.json([]), Response.json([]))
  const token = async refused => (refused ? 'new' : 'old')
  await ended(write('POST', '/rest/v1/cards', {}, { token }))
  await ended(write('POST', '/rest/v1/cards', {}, { token }))
  assert.deepEqual(requests.map(({ headers }) => headers.authorization), ['Bearer old', 'Bearer new', 'Bearer old'])
  assert.equal(requests[1].once, requests[0].once)
  assert.notEqual(requests[2].once, requests[0].once)
})

test('a message is sent once more, too, under the same name', async () => {
  const requests = answering(null, Response.json({ txid: '5' }, { headers: { 'rowcast-txid': '5' } }))
  const { value } = await ended(write('POST', '/channels/lobby', 'hello', { once: 'mine' }))
  assert.equal(value.txid, '5')
  assert.deepEqual(requests.map(({ once }) => once), ['mine', 'mine'])
})

test('what is no write of the relay has no name, so it is not sent again', async () => {
  const requests = answering()
  const { error } = await ended(write('POST', '/elsewhere', 'hello'))
  assert.equal(error.sent, true)
  assert.deepEqual(requests.map(({ once }) => once), [undefined])
})

test('a write that was stopped is not sent again', async () => {
  const requests = answering()
  const stop = new globalThis.AbortController()
  stop.abort()
  const { error } = await ended(write('POST', '/rest/v1/cards', {}, { signal: stop.signal }))
  assert.equal(error.message, 'the connection broke')
  assert.equal(requests.length, 1)
})

test('a page that is not from a safe origin has names, too', async () => {
  const { crypto } = globalThis
  const requests = answering(Response.json([]))
  Object.defineProperty(globalThis, 'crypto', { configurable: true, value: { getRandomValues: bytes => crypto.getRandomValues(bytes) } })
  await ended(write('POST', '/rest/v1/cards', {})).finally(() => Object.defineProperty(globalThis, 'crypto', { configurable: true, value: crypto }))
  assert.match(requests[0].once, /^[0-9a-f]{32}$/)
})
