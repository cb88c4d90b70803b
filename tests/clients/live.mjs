// What the client tests share: where the relay is, its database, patience.
import { execFile } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { EventSource } from 'eventsource'

/** `http://127.0.0.1:PORT` */
export const url = given('ROWCAST_URL')

/** A variable that the Rust test sets. */
export function given(name) {
  const value = process.env[name]
  if (!value) throw new Error(`${name} is not set: run these tests with cargo nextest run --test relay clients`)
  return value
}

/** Runs statements as any other service would: the relay does not see them. */
export async function sql(statements) {
  const psql = promisify(execFile)
  await psql('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', given('ROWCAST_DATABASE'), '-c', statements])
}

/** Waits until `probe` gives something true, and gives it. */
export async function until(what, probe) {
  for (const end = Date.now() + 20_000; ; await sleep(20)) {
    const found = await probe()
    if (found) return found
    if (Date.now() > end) throw new Error(`${what} never came true`)
  }
}

/** An EventSource of the npm package whose `data` events are kept: `{elements, id}`. */
export function listen(path, base = url) {
  const source = new EventSource(`${base}${path}`)
  const events = []
  source.addEventListener('data', event => events.push({ elements: JSON.parse(event.data), id: event.lastEventId }))
  const elements = () => events.flatMap(event => event.elements)
  const complete = () => elements().some(element => element.headers.control === 'snapshot-end')
  return { source, events, elements, complete, close: () => source.close() }
}
