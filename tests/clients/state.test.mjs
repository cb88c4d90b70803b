// `MaterializedState` of Durable Streams, unchanged: what it holds is what a read gives.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import Ajv from 'ajv'
import formats from 'ajv-formats'
import { MaterializedState, isChangeEvent, isControlEvent } from '@durable-streams/state'
import { listen, sql, until, url } from './live.mjs'

const options = { timeout: 60_000 }
const state = new MaterializedState()
let stream, applied = 0

const valid = (() => {
  const schema = new URL('node_modules/@durable-streams/state/state-protocol.schema.json', import.meta.url)
  return formats(new Ajv({ strict: false })).compile(JSON.parse(readFileSync(schema, 'utf8')))
})()

function materialize() {
  for (const element of stream.elements().slice(applied)) {
    // The version of a row is ours: the protocol's schema knows no such header, its client ignores it.
    const { etag, ...headers } = element.headers
    if (element.value) assert.match(etag, /^[0-9a-f]{32}$/)
    assert.ok(valid({ ...element, headers }), `${JSON.stringify(element)}: ${JSON.stringify(valid.errors)}`)
    assert.notEqual(isChangeEvent(element), isControlEvent(element))
    if (isChangeEvent(element)) state.apply(element)
    else if (element.headers.control === 'reset') state.clear()
    applied += 1
  }
  const byKey = (a, b) => a.id - b.id
  return [...state.getType('public.things').values()].sort(byKey)
}

async function read() {
  const answer = await fetch(`${url}/rest/v1/things?order=id`)
  return answer.json()
}

/** Waits until the stream told of something new and the state is what a read gives. */
async function agrees(what, happened) {
  await until(what, () => {
    materialize()
    return happened()
  })
  assert.deepEqual(materialize(), await read(), what)
}

const held = key => state.get('public.things', String(key))

before(() => {
  stream = listen('/rest/v1/things')
})
after(() => stream.close())

test('the snapshot', options, async () => {
  await agrees('the snapshot', stream.complete)
  assert.equal(materialize().length, 300)
  assert.deepEqual(state.types, ['public.things'])
})

test('inserts', options, async () => {
  await sql(`insert into things values (1001, 'a', '{"deep": [1, null, "x"]}'), (1002, E'line\\nbreak "quoted" \\u2028 ☃', null)`)
  await agrees('inserts', () => held(1002))
})

test('updates', options, async () => {
  await sql(`update things set title = 'changed' where id > 250`)
  await agrees('updates', () => held(1002)?.title === 'changed')
})

test('deletes', options, async () => {
  await sql(`delete from things where id between 100 and 199`)
  await agrees('deletes', () => !held(150))
  assert.equal(materialize().length, 202)
})

test('a key that changes', options, async () => {
  await sql(`update things set id = 2001 where id = 1001`)
  await agrees('the new key', () => held(2001))
  assert.equal(held(1001), undefined)
})

test('a transaction that does all of it', options, async () => {
  await sql(`begin; insert into things values (3001, 'n', null); update things set id = 3002 where id = 3001; delete from things where id = 1; update things set title = 'z' where id = 2; commit`)
  await agrees('the transaction', () => held(3002))
})

test('truncate, and a row in the same transaction', options, async () => {
  await sql(`begin; truncate things; insert into things values (5, 'alone', null); commit`)
  await agrees('the reset', () => held(5)?.title === 'alone')
  assert.equal(materialize().length, 1)
})
