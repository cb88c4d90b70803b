// What a client made of PostgREST's dialect can do, done with a real one. Its tables are in tables.sql.
import assert from 'node:assert/strict'
import { beforeEach, test } from 'node:test'

const codes = ({ error, status }) => [status, error?.code]
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

const THINGS = [
  { id: 1, tags: ['a'], detail: { size: 1, name: 'one' }, span: '[1,5)', words: "'cat':3 'fat':2", label: 'one' },
  { id: 2, tags: ['a', 'b'], detail: { size: 2, name: 'two' }, span: '[10,20)', words: "'cat':1 'dog':2", label: 'two' },
  { id: 3, tags: [], detail: null, span: null, words: null, label: 'three' },
]

/** Defines the tests. `db` is a client, made anew or not. */
export function suite(db) {
  const tasks = () => db.from('tasks')

  beforeEach(async () => {
    const { error } = await tasks().delete().gte('id', 0)
    assert.equal(error, null)
    const { status } = await tasks().insert(ROWS)
    assert.equal(status, 201)
    assert.equal((await db.from('things').delete().gte('id', 0)).error, null)
    assert.equal((await db.from('things').insert(THINGS)).status, 201)
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

  test('or, and, not: trees', async () => {
    const read = () => tasks().select('id').order('id')
    assert.deepEqual(ids(await read().or('id.eq.1,id.eq.3')), [1, 3])
    assert.deepEqual(ids(await read().or('id.eq.1,and(done.is.true,board_id.eq.9)')), [1, 4])
    assert.deepEqual(ids(await read().or('title.eq."two, with (care)",due.eq.2026-01-01')), [2, 3])
    assert.deepEqual(ids(await read().or('not.and(id.gt.1,id.lt.4)').neq('id', 4)), [1])
    assert.deepEqual(ids(await read().or('id.in.(1,2),title.like.f*').or('done.is.true')), [2, 4])
  })

  test('patterns, and one value against many', async () => {
    const read = () => tasks().select('id').order('id')
    assert.deepEqual(ids(await read().like('title', 't%')), [2, 3])
    assert.deepEqual(ids(await read().ilike('title', '%O%')), [1, 2, 4])
    assert.deepEqual(ids(await read().likeAnyOf('title', ['o%', 'f%'])), [1, 4])
    assert.deepEqual(ids(await read().likeAllOf('title', ['t%', '%ee'])), [3])
    assert.deepEqual(ids(await read().ilikeAnyOf('title', ['O%', 'F%'])), [1, 4])
    assert.deepEqual(ids(await read().ilikeAllOf('title', ['T%', '%EE'])), [3])
    assert.deepEqual(ids(await read().filter('title', 'match', '^(one|four)$')), [1, 4])
    assert.deepEqual(ids(await read().filter('title', 'imatch', '^ONE')), [1])
    assert.deepEqual(ids(await read().filter('due', 'isdistinct', '2026-01-02')), [1, 3, 4])
    assert.deepEqual(ids(await read().not('title', 'ilike', 't*')), [1, 4])
  })

  test('arrays, documents and ranges', async () => {
    const read = () => db.from('things').select('id').order('id')
    assert.deepEqual(ids(await read().contains('tags', ['a'])), [1, 2])
    assert.deepEqual(ids(await read().containedBy('tags', ['a', 'b'])), [1, 2, 3])
    assert.deepEqual(ids(await read().overlaps('tags', ['b'])), [2])
    assert.deepEqual(ids(await read().contains('detail', { size: 1 })), [1])
    assert.deepEqual(ids(await read().eq('detail->>name', 'two')), [2])
    assert.deepEqual(ids(await read().gt('detail->size', 1)), [2])
    assert.deepEqual(ids(await read().rangeLt('span', '[8,9)')), [1])
    assert.deepEqual(ids(await read().rangeGt('span', '[6,7)')), [2])
    assert.deepEqual(ids(await read().rangeGte('span', '[2,3)')), [2])
    assert.deepEqual(ids(await read().rangeLte('span', '[1,6)')), [1])
    assert.deepEqual(ids(await read().rangeAdjacent('span', '[5,10)')), [1, 2])
    assert.deepEqual(ids(await read().overlaps('span', '[4,11)')), [1, 2])
  })

  test('full text', async () => {
    const read = () => db.from('things').select('id').order('id')
    assert.deepEqual(ids(await read().textSearch('words', 'cat', { config: 'english' })), [1, 2])
    assert.deepEqual(ids(await read().textSearch('words', 'fat cats', { type: 'plain', config: 'english' })), [1])
    assert.deepEqual(ids(await read().textSearch('words', 'cats dogs', { type: 'phrase', config: 'english' })), [2])
    assert.deepEqual(ids(await read().textSearch('words', 'fat or dogs', { type: 'websearch', config: 'english' })), [1, 2])
  })

  test('casts and paths in what is selected and in the order', async () => {
    const { data, error } = await db.from('things').select('key:id::text,detail->name,size:detail->size,first:tags->>0').lt('id', 3).order('detail->size', { ascending: false })
    assert.equal(error, null)
    assert.deepEqual(data, [{ key: '2', name: 'two', size: 2, first: 'a' }, { key: '1', name: 'one', size: 1, first: 'a' }])
  })

  test('defaults for what is missing', async () => {
    const rows = [{ id: 10, tags: ['x'] }, { id: 11, label: 'given' }]
    const nulls = await db.from('things').insert(rows).select('id,label').order('id')
    assert.deepEqual(nulls.data, [{ id: 10, label: null }, { id: 11, label: 'given' }])
    const defaults = await db.from('things').insert([{ id: 20, tags: ['x'] }, { id: 21, label: 'other' }], { defaultToNull: false }).select('id,label').order('id')
    assert.deepEqual(defaults.data, [{ id: 20, label: 'fresh' }, { id: 21, label: 'other' }])
  })

  test('planned and estimated counts', async () => {
    for (const count of ['planned', 'estimated']) {
      const { data, count: rows, error } = await tasks().select('id', { count }).limit(1)
      assert.deepEqual([error, data.length, typeof rows], [null, 1, 'number'])
    }
  })

  test('no more rows than these', async () => {
    const many = await tasks().update({ done: true }).gt('id', 0).maxAffected(3)
    assert.deepEqual(codes(many), [400, 'PGRST124'])
    assert.deepEqual(ids(await tasks().select('id').is('done', true).order('id')), [2, 4])
    const few = await tasks().delete().lt('id', 3).maxAffected(2)
    assert.deepEqual([few.status, few.error], [204, null])
  })

  test('upserts by another key say whether rows are new', async () => {
    const upsert = (row, options) => db.from('things').upsert(row, { onConflict: 'label', ...options }).select('id,label')
    const fresh = await upsert({ id: 30, label: 'thirty' })
    assert.deepEqual([fresh.status, fresh.data], [201, [{ id: 30, label: 'thirty' }]])
    const known = await upsert({ id: 31, label: 'thirty' })
    assert.deepEqual([known.status, known.data], [200, [{ id: 31, label: 'thirty' }]])
    const ignored = await upsert({ id: 32, label: 'thirty' }, { ignoreDuplicates: true })
    assert.deepEqual([ignored.status, ignored.data], [200, []])
  })

  test('calls', async () => {
    assert.deepEqual((await db.rpc('add', { a: 1, b: 2 })).data, 3)
    assert.deepEqual((await db.rpc('add', { a: 1 })).data, 11)
    assert.deepEqual((await db.rpc('add', { a: 1, b: 2 }, { get: true })).data, 3)
    assert.deepEqual(ids(await db.rpc('of_board', { board: 7 }).select('id').gt('id', 1)), [2])
    assert.deepEqual(ids(await db.rpc('of_board', { board: 7 }, { get: true }).select('id').order('id', { ascending: false }).limit(1)), [2])
    for (const count of ['exact', 'planned', 'estimated']) {
      assert.equal((await db.rpc('of_board', { board: 7 }, { count }).limit(1)).count, 2)
    }
    const head = await db.rpc('of_board', { board: 7 }, { head: true, count: 'exact' })
    assert.deepEqual([head.error, head.count], [null, 2])
    assert.deepEqual((await db.rpc('of_board', { board: 9 }).single()).data.title, 'four')
    const done = await db.rpc('finish', { task: 1 })
    assert.deepEqual([done.status, done.error, done.data], [204, null, null])
    assert.deepEqual(ids(await tasks().select('id').is('done', true).order('id')), [1, 2, 4])
    assert.deepEqual(codes(await db.rpc('nowhere', {})), [404, 'PGRST202'])
    assert.deepEqual(codes(await db.rpc('add', { c: 1 })), [404, 'PGRST202'])
    assert.deepEqual(codes(await db.rpc('teapot')), [418, 'PT418'])
  })

  test('another schema', async () => {
    const archive = db.schema('archive')
    assert.deepEqual((await archive.from('tasks').select('old').order('id')).data, [{ old: 'yes' }])
    const { data, status } = await archive.from('tasks').upsert({ id: 1, old: 'still' }).select().single()
    assert.deepEqual([status, data], [200, { id: 1, old: 'still' }])
    assert.deepEqual((await archive.from('tasks').upsert({ id: 1, old: 'yes' })).error, null)
    assert.deepEqual(codes(await db.schema('secret').from('tasks').select()), [406, 'PGRST106'])
  })

  test('what is left out is said', async () => {
    const unsupported = [400, 'PGRST127']
    assert.deepEqual(codes(await tasks().select('id,boards(name)')), unsupported)
    assert.deepEqual(codes(await tasks().select('id.count()')), unsupported)
    assert.deepEqual(codes(await tasks().select('id').csv()), unsupported)
    assert.deepEqual(codes(await tasks().select('id').geojson()), unsupported)
  })

  test('a rehearsal', async () => {
    const { data, error } = await tasks().update({ title: 'rehearsed' }).eq('id', 1).select('title').rollback()
    assert.deepEqual([error, data], [null, [{ title: 'rehearsed' }]])
    assert.equal((await tasks().select('title').eq('id', 1).single()).data.title, 'one')
  })
}
