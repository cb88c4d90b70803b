// The browser's own EventSource on a page of the relay. The relay is killed and started again on
// its port when a row of `wishes` appears; 'missed' is written while it is away.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { launch, url } from './chromium.mjs'

let browser
before(async () => {
  browser = await launch()
})
after(() => browser?.close())

test('a page sees the snapshot, a change, and after a restart of the relay what it missed', { timeout: 120_000 }, async () => {
  const page = await browser.newPage()
  await page.goto(`${url}/livez`)
  await page.evaluate(() => {
    const screen = { titles: [], controls: [], ids: [], errors: 0, upToDate: null }
    globalThis.screenful = screen
    const source = new EventSource('/rest/v1/notes')
    source.addEventListener('data', event => {
      screen.ids.push(event.lastEventId)
      for (const { value, headers } of JSON.parse(event.data)) {
        if (headers.control) screen.controls.push(headers.control)
        else screen.titles.push(value.title)
      }
    })
    source.addEventListener('control', event => {
      screen.upToDate = JSON.parse(event.data).upToDate
    })
    source.addEventListener('error', () => {
      screen.errors += 1
    })
  })
  const seen = title => page.waitForFunction(title => globalThis.screenful.titles.includes(title), title, { timeout: 60_000 })
  const write = (id, title) => page.evaluate(async ({ id, title }) => {
    const answer = await fetch('/rest/v1/notes', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ id, title }),
    })
    return answer.status
  }, { id, title })

  await seen('there')
  assert.equal(await write(2, 'written here'), 201)
  await seen('written here')
  assert.equal(await write(3, 'restart'), 201)
  // The relay dies as soon as it is committed, so its answer may never come.
  await page.evaluate(() => {
    fetch('/rest/v1/wishes', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"id":1}',
    }).catch(() => {})
  })
  await seen('missed')
  await page.waitForFunction(() => globalThis.screenful.upToDate === true, null, { timeout: 60_000 })
  assert.equal(await write(5, 'after'), 201)
  await seen('after')

  const screen = await page.evaluate(() => globalThis.screenful)
  assert.ok(screen.errors > 0, 'the connection was lost')
  assert.deepEqual(screen.titles, ['there', 'written here', 'restart', 'missed', 'after'])
  assert.deepEqual(screen.controls, ['snapshot-start', 'snapshot-end'], 'no second snapshot')
  for (const id of screen.ids) assert.match(id, /^[\w-]+\.[\w-]+\.[0-9a-f-]+$/)
  assert.equal(new Set(screen.ids).size, screen.ids.length, 'every event moved the resume point')
})
