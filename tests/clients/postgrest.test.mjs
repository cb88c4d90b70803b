// `@supabase/postgrest-js`, unchanged, against the relay.
import { PostgrestClient } from '@supabase/postgrest-js'
import { url } from './live.mjs'
import { suite } from './suite.mjs'

suite(new PostgrestClient(`${url}/rest/v1`))
