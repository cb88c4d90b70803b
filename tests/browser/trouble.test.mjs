// The demo board when something goes wrong: another person at the same screen, a relay that refuses.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { url } from './chromium.mjs'
import { newCard, open, options, seat, signedIn, sql } from './seats.mjs'

test('the board stays in sight while somebody takes the seat', options, async () => {
  const page = await open(await seat(''))
  const id = await newCard('Always there')
  await page.locator(`[data-card="${id}"]`).waitFor()
  await page.evaluate(id => {
    globalThis.missing = 0
    new MutationObserver(() => document.querySelector(`[data-card="${id}"]`) || globalThis.missing++).observe(document.body, { childList: true, subtree: true })
  }, id)
  await page.locator('#me').click()
  await page.locator('#sign-in-name').fill('Mia')
  await page.keyboard.press('Enter')
  await signedIn(page)
  await sql(`update cards set title = 'Seen by Mia' where id = ${id}`)
  await page.locator(`[data-card="${id}"]`).filter({ hasText: 'Seen by Mia' }).waitFor()
  assert.equal(await page.evaluate(() => globalThis.missing), 0)
})

test('a board that is refused says why', options, async () => {
  const context = await seat('', { alone: true })
  const page = await context.newPage()
  const told = { upToDate: false, error: { code: 'RCH08', message: 'this user has 100 open streams' }, retry_ms: 12_000 }
  await page.route('**/rest/v1/cards*', route => route.fulfill({ contentType: 'text/event-stream', body: `retry: 12000\nevent: control\nid: 0\ndata: ${JSON.stringify(told)}\n\n` }))
  await page.goto(url)
  await page.locator('#status-text').filter({ hasText: 'this user has 100 open streams' }).waitFor({ timeout: 20_000 })
})

/** Runs in the page: the contrast of an element's text (WCAG 2), with all that lies behind it. */
function contrast({ selector, status }) {
  document.documentElement.dataset.status = status
  const element = document.querySelector(selector)
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
  const pen = canvas.getContext('2d', { willReadFrequently: true })
  const paint = colour => {
    pen.fillStyle = colour
    pen.fillRect(0, 0, 1, 1)
  }
  const light = () => {
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(part => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const layers = []
  for (let at = element; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor)
  layers.forEach(paint)
  const back = light()
  paint(getComputedStyle(element).color)
  const [dark, bright] = [back, light()].sort((a, b) => a - b)
  return (bright + 0.05) / (dark + 0.05)
}

for (const colorScheme of ['light', 'dark']) {
  test(`what stands on the bar of a board that is behind can be read, ${colorScheme}`, options, async () => {
    const page = await open(await seat('Mia'))
    await signedIn(page)
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' })
    for (const pressed of ['false', 'true']) {
      for (const id of ['activity-toggle', 'reminders-toggle', 'wall-toggle', 'me', 'status']) {
        const selector = `#${id}`
        await page.locator(selector).evaluate((button, pressed) => {
          for (const name of ['aria-expanded', 'aria-pressed']) if (button.hasAttribute(name)) button.setAttribute(name, pressed)
        }, pressed)
        for (const hover of [false, true]) {
          await (hover ? page.locator(selector).hover() : page.mouse.move(600, 600))
          for (const status of ['live', 'stale', 'lost']) {
            const found = await page.evaluate(contrast, { selector, status })
            assert.ok(found >= 4.5, `${id}, ${status}${pressed === 'true' ? ', pressed' : ''}${hover ? ', hovered' : ''}: ${found.toFixed(2)}`)
          }
        }
      }
    }
  })
}

test('a wall that was out of sight asks again to stay on', options, async () => {
  const context = await seat('')
  await context.addInitScript(() => {
    globalThis.locks = 0
    Object.defineProperty(navigator, 'wakeLock', { value: { request: async () => ++globalThis.locks && { release() {} } } })
  })
  const page = await context.newPage()
  await page.goto(`${url}/#wall`)
  await page.waitForFunction(() => globalThis.locks === 1)
  await page.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
  await page.waitForFunction(() => globalThis.locks === 2)
})
