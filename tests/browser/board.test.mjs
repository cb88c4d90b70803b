// Two windows on the demo board: what one does, and what SQL does, both show without a reload.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { launch, url } from './chromium.mjs'

const options = { timeout: 120_000 }
let browser, a, b
const mistakes = []

/** A window with storage of its own, on the board and live: somebody's, or a visitor's. */
async function open(name) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, reducedMotion: 'reduce' })
  await context.addInitScript(name => localStorage.setItem('rowcast.board.me', name), name)
  const page = await context.newPage()
  page.setDefaultTimeout(20_000)
  page.on('pageerror', error => mistakes.push(String(error)))
  page.on('console', message => mistakes.push(message.text()))
  await page.goto(url)
  await page.evaluate(() => {
    globalThis.neverReloaded = true
  })
  await page.locator('[data-status=live]').first().waitFor({ state: 'attached' })
  return page
}

async function sql(statements) {
  const psql = promisify(execFile)
  await psql('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', process.env.ROWCAST_DATABASE, '-c', statements])
}

async function rows(path) {
  const answer = await fetch(`${url}/rest/v1/${path}`)
  assert.equal(answer.status, 200)
  return answer.json()
}

const card = (page, id) => page.locator(`[data-card="${id}"]`)
const listed = (page, list, id) => page.locator(`[data-list="${list}"] [data-card="${id}"]`)
const titled = (page, id, text) => card(page, id).filter({ hasText: text })

/** Where the mouse takes hold of an element. */
async function middle(locator) {
  const { x, y, width, height } = await locator.boundingBox()
  return [x + width / 2, y + Math.min(height / 2, 18)]
}

before(async () => {
  browser = await launch()
  ;[a, b] = [await open('Mia'), await open('')]
})
after(() => browser?.close())

test('both windows show every list and card of the database', options, async () => {
  for (const page of [a, b]) {
    for (const { id } of await rows('lists')) await page.locator(`[data-list="${id}"]`).waitFor()
    for (const { id, list_id } of await rows('cards')) await listed(page, list_id, id).waitFor()
  }
})

test('a card that one window moves is moved in the other', options, async () => {
  const [from, to] = await rows('lists?order=position')
  const [{ id }] = await rows(`cards?list_id=eq.${from.id}&order=position&limit=1`)
  await a.mouse.move(...await middle(card(a, id)))
  await a.mouse.down()
  const [x, y] = await middle(a.locator(`[data-list="${to.id}"]`))
  await a.mouse.move(x, y + 80, { steps: 12 })
  await a.mouse.up()
  await listed(b, to.id, id).waitFor()
  await listed(a, to.id, id).waitFor()
  const [{ list_id }] = await rows(`cards?id=eq.${id}`)
  assert.equal(list_id, to.id)
})

test('a card that one window renames is renamed in the other', options, async () => {
  const [{ id }] = await rows('cards?order=id&limit=1')
  await card(a, id).dblclick({ position: { x: 12, y: 12 } })
  await a.locator(`[data-card="${id}"] [name=title]`).fill('Renamed in a window')
  await a.keyboard.press('Enter')
  await titled(b, id, 'Renamed in a window').waitFor()
  assert.equal((await rows(`cards?id=eq.${id}`))[0].title, 'Renamed in a window')
})

test('what SQL does shows in both windows', options, async () => {
  const [first, , last] = await rows('lists?order=position')
  const [{ id }] = await rows('cards?order=id.desc&limit=1')
  await sql(`begin;
    update cards set title = 'Renamed by SQL', list_id = ${(last ?? first).id} where id = ${id};
    insert into cards (id, list_id, title) values (900001, ${first.id}, 'Made by SQL');
    commit`)
  for (const page of [a, b]) {
    await listed(page, (last ?? first).id, id).filter({ hasText: 'Renamed by SQL' }).waitFor()
    await titled(page, 900001, 'Made by SQL').waitFor()
  }
  await sql('delete from cards where id = 900001')
  for (const page of [a, b]) await card(page, 900001).waitFor({ state: 'detached' })
})

test('no window was reloaded, none is behind, and none made a mistake', options, async () => {
  for (const page of [a, b]) {
    assert.equal(await page.evaluate(() => globalThis.neverReloaded), true)
    assert.equal(await page.locator('[data-status]').first().getAttribute('data-status'), 'live')
  }
  assert.deepEqual(mistakes, [])
  const directory = await mkdtemp(join(tmpdir(), 'rowcast-board-'))
  const picture = join(directory, 'board.png')
  await b.screenshot({ path: picture })
  assert.ok((await stat(picture)).size > 10_000, `${picture} shows nothing`)
  await rm(directory, { recursive: true })
})
