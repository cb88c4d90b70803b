// `@supabase/supabase-js`, unchanged, against a relay that asks who one is. The keys are JWTs.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createClient } from '@supabase/supabase-js'
import { given, url } from './live.mjs'
import { suite } from './suite.mjs'

const options = { auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false } }
const client = key => createClient(url, key, options)
const member = client(given('ROWCAST_MEMBER_TOKEN'))

suite(member)

test('a row belongs to whom the token says', async () => {
  const { data, error } = await member.from('own').insert({ id: 1, note: 'mine' }).select().single()
  assert.equal(error, null)
  assert.deepEqual(data, { id: 1, owner: 'ann', note: 'mine' })
  const stolen = await member.from('own').insert({ id: 2, owner: 'bob' })
  assert.deepEqual([stolen.status, stolen.error.code], [403, '42501'])
  const other = client(given('ROWCAST_OTHER_TOKEN'))
  assert.deepEqual((await other.from('own').select()).data, [])
  assert.deepEqual((await other.from('own').delete().gt('id', 0).select()).data, [])
  assert.equal((await member.from('own').delete().eq('id', 1)).error, null)
})

test('the anonymous key is a role like any other', async () => {
  const anyone = client(given('ROWCAST_ANON_TOKEN'))
  assert.deepEqual((await anyone.rpc('add', { a: 1 })).data, 11)
  const { status, error } = await anyone.from('tasks').select()
  assert.deepEqual([status, error.code], [403, '42501'])
})

test('a key that is no token is refused', async () => {
  const { status, error } = await client('sb_publishable_abc').from('tasks').select()
  assert.deepEqual([status, error.code], [401, 'PGRST301'])
})

test('the token of a session is taken over from the key', async () => {
  const token = given('ROWCAST_MEMBER_TOKEN')
  const session = createClient(url, given('ROWCAST_ANON_TOKEN'), { ...options, accessToken: async () => token })
  const { status, error } = await session.from('own').select()
  assert.deepEqual([status, error], [200, null])
})
