// Takes the README's picture of the demo board: two people's windows, one change.
//
//     node picture.mjs http://127.0.0.1:3000/ [../../docs/board.png]
//
// Needs a Chromium (CHROMIUM, else /usr/bin/chromium) and a demo board with its first cards. It
// moves a card and moves it back; the diary keeps the two lines. One of the two has reminders for
// the time being.
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'

const url = process.argv[2]
if (!url) {
  console.error('usage: node picture.mjs URL [FILE]')
  process.exit(2)
}
const file = process.argv[3] ?? fileURLToPath(new URL('../../docs/board.png', import.meta.url))
const scale = 1.25
const height = 700
const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: flags })

async function sit(name, width, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, deviceScaleFactor: scale })
  await context.addInitScript(name => localStorage.setItem('rowcast.board.me', name), name)
  await context.addInitScript(() => localStorage.setItem('rowcast.board.reminders', 'open'))
  const page = await context.newPage()
  await page.goto(url)
  await page.waitForSelector('[data-status=live] [data-card]')
  await page.waitForSelector('#reminders-toggle:not([hidden])')
  return page
}

/** Drags the first card of one list on the first of another, with the mouse. */
async function drag(page, card, list) {
  const from = await page.locator(`[data-card="${card}"]`).boundingBox()
  const to = await page.locator(`[data-list="${list}"] .cards`).boundingBox()
  await page.mouse.move(from.x + 60, from.y + 16)
  await page.mouse.down()
  await page.mouse.move(to.x + 70, to.y - 20, { steps: 24 })
  await page.waitForTimeout(350) // the placeholder glides
  await page.mouse.up()
}

try {
  const mia = await sit('Mia', 1020, 'light')
  const jonas = await sit('Jonas', 1340, 'dark')
  const [, from, to] = await mia.locator('[data-list]').evaluateAll(lists => lists.map(list => list.dataset.list))
  const card = await mia.locator(`[data-list="${from}"] [data-card]`).first().getAttribute('data-card')
  for (const text of ['Ask Aiko for her old tablet', 'Book the room for Thursday']) {
    await jonas.fill('#reminder-form input', text)
    await jonas.keyboard.press('Enter')
    await jonas.locator('[data-reminder]:not([data-reminder^=new])').filter({ hasText: text }).waitFor()
  }
  await jonas.evaluate(() => document.activeElement.blur())
  await drag(mia, card, to)
  await jonas.waitForSelector(`[data-list="${to}"] [data-card="${card}"][data-glow]:not([data-flying])`)
  await mia.mouse.move(500, 690)
  await jonas.waitForTimeout(200) // the glow is at its warmest, the diary has its line
  const shots = await Promise.all([jonas, mia].map(page => page.screenshot()))
  while (await jonas.locator('[data-reminder]').count()) await jonas.locator('.reminder-drop').first().click()
  await drag(mia, card, from)
  await jonas.waitForSelector(`[data-list="${from}"] [data-card="${card}"]`)

  const canvas = await browser.newPage({ viewport: { width: 2600, height: 900 }, deviceScaleFactor: scale })
  await canvas.setContent(`<!doctype html><style>
    body { margin: 0; background: linear-gradient(120deg, #dfe7e1, #cfd8d9 55%, #b9c3cb); }
    main { display: inline-flex; gap: 48px; padding: 56px; align-items: center; }
    figure { margin: 0; border-radius: 14px; overflow: hidden; box-shadow: 0 2px 6px #1a22281f, 0 28px 70px #1a222852; }
    .frame { height: 34px; display: flex; gap: 8px; align-items: center; padding: 0 14px; background: #e9e6df; }
    .dark .frame { background: #22262a; }
    i { width: 11px; height: 11px; border-radius: 50%; background: #b9b5ac; }
    .dark i { background: #4a4f55; }
    img { display: block; }
  </style><main></main>`)
  await canvas.evaluate(async windows => {
    for (const { picture, width, theme } of windows) {
      const figure = document.createElement('figure')
      figure.className = theme
      const frame = document.createElement('div')
      frame.className = 'frame'
      frame.append(...[1, 2, 3].map(() => document.createElement('i')))
      const image = new Image(width)
      image.src = picture
      await image.decode()
      figure.append(frame, image)
      document.querySelector('main').append(figure)
    }
  }, [
    { picture: `data:image/png;base64,${shots[1].toString('base64')}`, width: 1020, theme: 'light' },
    { picture: `data:image/png;base64,${shots[0].toString('base64')}`, width: 1340, theme: 'dark' },
  ])
  await canvas.locator('main').screenshot({ path: file })
  console.log(file)
} finally {
  await browser.close()
}
