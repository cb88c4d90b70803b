// Seats at the demo board: browsers of their own, each one person's, in a Chromium that is shared.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { after, afterEach, before } from 'node:test'
import { promisify } from 'node:util'
import { launch, url } from './chromium.mjs'

export const options = { timeout: 120_000 }
let browser
/** What the browser complained of; a test that expects nothing else fails for it. */
export const mistakes = []
const contexts = []

before(async () => {
  browser = await launch()
})
after(() => browser?.close())
afterEach(async () => {
  // A page may be signing in anew at this very moment.
  for (const context of contexts) await context.unrouteAll({ behavior: 'ignoreErrors' })
  await Promise.all(contexts.splice(0).map(context => context.close()))
  assert.deepEqual(mistakes.splice(0), [])
})

/** A browser of its own, whose windows are one person's. */
export async function seat(name, { alone = false } = {}) {
  const context = await browser.newContext({ viewport: { width: 1340, height: 900 }, reducedMotion: 'reduce' })
  contexts.push(context)
  if (name !== undefined) await context.addInitScript(name => localStorage.getItem('rowcast.board.me') ?? localStorage.setItem('rowcast.board.me', name), name)
  if (alone) await context.addInitScript(() => delete globalThis.SharedWorker)
  return context
}

/** A window on the board, live. */
export async function open(context, at = url) {
  const page = await context.newPage()
  page.setDefaultTimeout(20_000)
  page.on('pageerror', error => mistakes.push(String(error)))
  // A refused write is told by the browser itself, too.
  page.on('console', message => /status of 412/.test(message.text()) || mistakes.push(message.text()))
  await page.goto(at)
  await page.locator('[data-status=live] [data-card]').first().waitFor()
  return page
}

/** Somebody else takes the seat. */
export async function takeSeat(page, name) {
  await page.locator('#me').click()
  await page.getByRole('menuitem', { name: 'Change name…' }).click()
  await page.locator('.choice').filter({ hasText: name }).click()
  await page.locator('.me-name').filter({ hasText: name }).waitFor()
}

export const signedIn = page => page.locator('#reminders-toggle').waitFor()

export async function sql(statements) {
  const { stdout } = await promisify(execFile)('psql', ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-d', process.env.ROWCAST_DATABASE, '-c', statements])
  return stdout.trim()
}

export async function newCard(title) {
  return Number(await sql(`insert into cards (list_id, title, note) values (1, '${title}', 'a note') returning id`))
}

export const titleField = (page, id) => page.locator(`[data-card="${id}"] [name=title]`)
export const editor = (page, id) => page.locator(`[data-card="${id}"] form.editor`)
export const stored = id => sql(`select title from cards where id = ${id}`)

export async function edit(page, id) {
  await page.locator(`[data-card="${id}"]`).focus()
  await page.keyboard.press('Enter')
  await titleField(page, id).waitFor()
}

/**
 * Has `handle` answer the page's next writes of a table instead of the relay, `times` of them; gives the way back. What
 * is read passes: a page whose worker is slow to start opens streams of its own, which have the same URLs.
 */
export async function intercept(page, method, table, handle, times = Infinity) {
  const glob = `**/rest/v1/${table}*`
  const handler = (route, request) => (request.method() === method && times-- > 0 ? handle(route, request) : route.fallback())
  await page.route(glob, handler)
  return () => page.unroute(glob, handler)
}
