// `@supabase/postgrest-js`, unchanged, against the relay.
import assert from 'node:assert/strict'
import { beforeEach, test } from 'node:test'
import { PostgrestClient } from '@supabase/postgrest-js'
import { url } from './live.mjs'

const db = new PostgrestClient(`${url}/rest/v1`)
const tasks = () => db.from('tasks')
const ids = ({ data, error }) => {
  assert.equal(error, null)
  return data.map(({ id }) => id)
}

const ROWS = [
  { id: 1, board_id: 7, title: 'one', done: false, due: null },
  { id: 2, board_id: 7, title: 'two, with (care)', done: true, due: '2026-01-02' },
  { id: 3, board_id: 8, title: 'three', done: false, due: '2026-01-01' },
  { id: 4, board_id: 9, title: 'four', done: true, due: null },
]

beforeEach(async () => {
  const { error } = await tasks().delete().gte('id', 0)
  assert.equal(error, null)
  const { status } = await tasks().insert(ROWS)
  assert.equal(status, 201)
})

test('insert one', async () => {
  const silent = await tasks().insert({ id: 10, board_id: 1, title: 'ten' })
  assert.deepEqual([silent.status, silent.data, silent.error], [201, null, null])
  const { data, status } = await tasks().insert({ id: 11, board_id: 1, title: 'eleven' }).select().single()
  assert.equal(status, 201)
  assert.deepEqual(data, { id: 11, board_id: 1, title: 'eleven', done: false, due: null })
})

test('insert many, with columns that only some name', async () => {
  const { data, error, count } = await tasks()
    .insert([{ id: 10, board_id: 1, title: 'ten', done: false, due: '2026-03-04' }, { id: 11, board_id: 1, title: 'eleven', done: true }], { count: 'exact' })
    .select('id,due')
    .order('id', { ascending: false })
  assert.equal(error, null)
  assert.equal(count, 2)
  assert.deepEqual(data, [{ id: 11, due: null }, { id: 10, due: '2026-03-04' }])
})

test('select everything, some columns, other names', async () => {
  assert.deepEqual((await tasks().select().order('id')).data, ROWS)
  const { data } = await tasks().select('id, name:title').eq('id', 1)
  assert.deepEqual(data, [{ id: 1, name: 'one' }])
})

test('filters', async () => {
  const read = () => tasks().select('id').order('id')
  assert.deepEqual(ids(await read().eq('board_id', 7)), [1, 2])
  assert.deepEqual(ids(await read().eq('title', 'two, with (care)')), [2])
  assert.deepEqual(ids(await read().neq('board_id', 7)), [3, 4])
  assert.deepEqual(ids(await read().gt('id', 2)), [3, 4])
  assert.deepEqual(ids(await read().gte('id', 2).lt('id', 4)), [2, 3])
  assert.deepEqual(ids(await read().lte('due', '2026-01-01')), [3])
  assert.deepEqual(ids(await read().in('id', [1, 4, 99])), [1, 4])
  assert.deepEqual(ids(await read().in('title', ['two, with (care)', 'four'])), [2, 4])
  assert.deepEqual(ids(await read().in('id', [])), [])
  assert.deepEqual(ids(await read().is('due', null)), [1, 4])
  assert.deepEqual(ids(await read().is('done', true)), [2, 4])
  assert.deepEqual(ids(await read().not('due', 'is', null)), [2, 3])
  assert.deepEqual(ids(await read().match({ board_id: 7, done: true })), [2])
  assert.deepEqual(ids(await read().filter('id', 'in', '(2,3)')), [2, 3])
})

test('order, limit and range', async () => {
  const read = () => tasks().select('id')
  assert.deepEqual(ids(await read().order('id', { ascending: false })), [4, 3, 2, 1])
  assert.deepEqual(ids(await read().order('due', { nullsFirst: true }).order('id', { ascending: false })), [4, 1, 3, 2])
  assert.deepEqual(ids(await read().order('due', { nullsFirst: false }).order('id')), [3, 2, 1, 4])
  assert.deepEqual(ids(await read().order('id').limit(2)), [1, 2])
  assert.deepEqual(ids(await read().order('id').range(1, 2)), [2, 3])
})

test('single and maybeSingle', async () => {
  assert.deepEqual((await tasks().select('title').eq('id', 1).single()).data, { title: 'one' })
  const none = await tasks().select().eq('id', 99).single()
  assert.equal(none.status, 406)
  assert.equal(none.error.code, 'PGRST116')
  assert.match(none.error.details, /0 rows/)
  const many = await tasks().select().eq('board_id', 7).single()
  assert.equal(many.error.code, 'PGRST116')
  const perhaps = await tasks().select().eq('id', 99).maybeSingle()
  assert.deepEqual([perhaps.data, perhaps.error], [null, null])
  assert.equal((await tasks().select().eq('id', 3).maybeSingle()).data.title, 'three')
  assert.equal((await tasks().select().eq('board_id', 7).maybeSingle()).error.code, 'PGRST116')
})

test('exact counts, with rows and without', async () => {
  const head = await tasks().select('*', { count: 'exact', head: true }).eq('board_id', 7)
  assert.deepEqual([head.error, head.count, head.data], [null, 2, null])
  const page = await tasks().select('id', { count: 'exact' }).order('id').range(0, 1)
  assert.equal(page.status, 206)
  assert.deepEqual([page.count, page.data.length], [4, 2])
})

test('update', async () => {
  const silent = await tasks().update({ title: 'uno' }).eq('id', 1)
  assert.deepEqual([silent.status, silent.data, silent.error], [204, null, null])
  const { data, status, count } = await tasks().update({ done: true, due: null }, { count: 'exact' }).eq('board_id', 7).select('id,title,done').order('id')
  assert.equal(status, 200)
  assert.equal(count, 2)
  assert.deepEqual(data, [{ id: 1, title: 'uno', done: true }, { id: 2, title: 'two, with (care)', done: true }])
  const nothing = await tasks().update({}).eq('id', 1)
  assert.deepEqual([nothing.status, nothing.error], [204, null])
  const none = await tasks().update({ done: true }).eq('id', 99).select()
  assert.deepEqual([none.error, none.data], [null, []])
})

test('upsert', async () => {
  const { data, error } = await tasks().upsert([{ id: 1, board_id: 7, title: 'uno' }, { id: 10, board_id: 7, title: 'ten' }]).select('id,title').order('id')
  assert.equal(error, null)
  assert.deepEqual(data, [{ id: 1, title: 'uno' }, { id: 10, title: 'ten' }])
  const ignored = await tasks().upsert({ id: 1, board_id: 7, title: 'never' }, { onConflict: 'id', ignoreDuplicates: true }).select()
  assert.deepEqual([ignored.error, ignored.data], [null, []])
  assert.equal((await tasks().select().eq('id', 1).single()).data.title, 'uno')
})

test('delete', async () => {
  const { data } = await tasks().delete().eq('board_id', 7).select('id').order('id', { ascending: false })
  assert.deepEqual(data, [{ id: 2 }, { id: 1 }])
  const silent = await tasks().delete({ count: 'exact' }).gt('id', 0)
  assert.deepEqual([silent.status, silent.count, silent.error], [204, 2, null])
})

test('errors have the shape that the library promises', async () => {
  const shape = ({ error, data }) => {
    assert.equal(data, null)
    assert.deepEqual(Object.keys(error).filter(key => key !== 'name').sort(), ['code', 'details', 'hint', 'message'])
    assert.equal(typeof error.message, 'string')
    return error.code
  }
  const twice = await tasks().insert({ id: 1, board_id: 7, title: 'again' })
  assert.equal(twice.status, 409)
  assert.equal(shape(twice), '23505')
  assert.equal(shape(await tasks().insert({ id: 20, board_id: 7, title: null })), '23502')
  assert.equal(shape(await tasks().insert({ id: 20, colour: 'red' })), 'PGRST204')
  assert.equal(shape(await tasks().select('colour')), '42703')
  assert.equal(shape(await tasks().select().eq('id', 'x')), '22P02')
  const absent = await db.from('nowhere').select()
  assert.equal(absent.status, 404)
  assert.equal(shape(absent), 'PGRST205')
  assert.equal(shape(await tasks().select('id,boards(name)')), 'PGRST127')
  await assert.rejects(async () => tasks().insert({ id: 1, board_id: 7, title: 'again' }).throwOnError(), { code: '23505' })
})

test('a request can be given up', async () => {
  const { error } = await tasks().select().abortSignal(AbortSignal.abort())
  assert.match(error.message, /AbortError/)
})
