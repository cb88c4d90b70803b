// The npm package `eventsource`, unchanged, as a screen.
import assert from 'node:assert/strict'
import { connect, createServer } from 'node:net'
import { once } from 'node:events'
import { test } from 'node:test'
import { listen, sql, until, url } from './live.mjs'

const options = { timeout: 60_000 }
const values = stream => stream.elements().filter(element => element.value).map(element => element.value.title)

/** A cable to the relay that can be pulled. */
async function cable() {
  const { hostname, port } = new URL(url)
  const open = new Set()
  const server = createServer(screen => {
    const relay = connect(Number(port), hostname)
    for (const [from, to] of [[screen, relay], [relay, screen]]) {
      open.add(from)
      from.on('error', () => {}).on('close', () => {
        open.delete(from)
        to.destroy()
      })
      from.pipe(to)
    }
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    pull: () => open.forEach(socket => socket.destroy()),
    close() {
      server.close()
      this.pull()
    },
  }
}

test('a snapshot arrives, then a change as it is committed', options, async t => {
  await sql(`insert into notes values (1, 'one'), (2, 'two')`)
  const stream = listen('/rest/v1/notes?id=lt.10')
  t.after(stream.close)
  await until('the snapshot', stream.complete)
  assert.deepEqual(values(stream), ['one', 'two'])
  assert.equal(stream.elements()[0].headers.control, 'snapshot-start')

  await sql(`update notes set title = 'uno' where id = 1`)
  await until('the change', () => values(stream).includes('uno'))
  const { elements, id } = stream.events.at(-1)
  assert.equal(elements.length, 1)
  assert.equal(elements[0].type, 'public.notes')
  assert.equal(elements[0].key, '1')
  assert.equal(elements[0].headers.operation, 'update')
  assert.match(elements[0].headers.txid, /^\d+$/)
  assert.match(id, /^[\w-]+\.[\w-]+\.[0-9a-f-]+$/)
})

test('a write is told by its own transaction id', options, async t => {
  const stream = listen('/rest/v1/notes?id=gt.10&id=lt.20')
  t.after(stream.close)
  await until('the snapshot', stream.complete)
  const answer = await fetch(`${url}/rest/v1/notes`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify([{ id: 11, title: 'a' }, { id: 12, title: 'b' }]),
  })
  assert.equal(answer.status, 201)
  const txid = answer.headers.get('rowcast-txid')
  await until('the write', () => values(stream).length)
  assert.deepEqual(stream.events.at(-1).elements.map(({ key, headers }) => [key, headers.txid]), [['11', txid], ['12', txid]])
})

test('a screen that lost its connection misses nothing and sees nothing twice', options, async t => {
  await sql(`insert into notes values (21, 'before')`)
  const wire = await cable()
  t.after(() => wire.close())
  const stream = listen('/rest/v1/notes?id=gt.20&id=lt.30', wire.url)
  t.after(stream.close)
  await until('the snapshot', stream.complete)
  await sql(`insert into notes values (22, 'seen')`)
  await until('the first change', () => values(stream).includes('seen'))

  const lost = once(stream.source, 'error')
  wire.pull()
  await lost
  await sql(`insert into notes values (23, 'missed'); delete from notes where id = 21`)
  await until('what was missed', () => stream.elements().some(element => element.headers.operation === 'delete'))
  await sql(`insert into notes values (24, 'after')`)
  await until('what came later', () => values(stream).includes('after'))

  assert.deepEqual(values(stream), ['before', 'seen', 'missed', 'after'])
  const controls = stream.elements().flatMap(element => element.headers.control ?? [])
  assert.deepEqual(controls, ['snapshot-start', 'snapshot-end'], 'no second snapshot')
})
