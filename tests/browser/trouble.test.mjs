// The demo board when something goes wrong: answers that are lost, lists and cards that go away under
// the hand, another person at the same screen, a relay that refuses.
import assert from 'node:assert/strict'
import { createServer, request } from 'node:http'
import { test } from 'node:test'
import { url } from './chromium.mjs'
import { edit, editor, intercept, mistakes, newCard, open, options, seat, signedIn, sql, stored, takeSeat, titleField } from './seats.mjs'

/** Something to wait for, and what ends the wait. */
function gate() {
  let release
  const opened = new Promise(done => (release = done))
  return { opened, release }
}

async function eventually(what, look) {
  for (let tries = 0; tries < 200; tries++) {
    if (await look()) return
    await new Promise(done => setTimeout(done, 50))
  }
  assert.fail(`never: ${what}`)
}

const newList = title => sql(`insert into lists (title, position) values ('${title}', 1000) returning id`)
const composer = (page, list) => page.locator(`[data-list="${list}"] form.composer textarea`)

async function compose(page, list, text) {
  await page.locator(`[data-list="${list}"] .add-card`).click()
  await composer(page, list).fill(text)
}

test('a card whose answer is lost is stored once, also when it is sent again by hand', options, async () => {
  const page = await open(await seat(''))
  const list = await newList('Lossy')
  const times = title => sql(`select count(*) from cards where title = '${title}'`)
  let lost = 0
  const lose = count => intercept(page, 'POST', 'cards', async route => {
    await route.fetch()
    lost++
    await route.abort()
  }, count)
  mistakes.push = () => 0 // the browser itself tells of each request that failed
  await lose(1)
  await compose(page, list, 'Answer lost once')
  await page.keyboard.press('Enter')
  await page.locator('[data-card]:not([data-unsaved])').filter({ hasText: 'Answer lost once' }).waitFor()
  await eventually('the second try', async () => lost === 1 && await page.locator('[data-unsaved]').count() === 0)
  assert.equal(await times('Answer lost once'), '1')

  await lose(2)
  await composer(page, list).fill('Answer lost twice')
  await page.keyboard.press('Enter')
  await page.locator('.toast[data-tone=trouble]').filter({ hasText: 'not known whether it was stored' }).waitFor()
  assert.equal(lost, 3)
  assert.equal(await composer(page, list).inputValue(), 'Answer lost twice')
  await page.keyboard.press('Enter')
  await eventually('an answer', async () => await composer(page, list).inputValue() === '' && await page.locator('[data-unsaved]').count() === 0)
  assert.equal(await times('Answer lost twice'), '1')
  assert.equal(await page.locator('[data-card]').filter({ hasText: 'Answer lost twice' }).count(), 1)
  delete mistakes.push
})

/** A proxy that passes new cards on and breaks the connection of the first one instead of answering. */
async function breaking() {
  const seen = []
  const proxy = createServer((from, to) => {
    const { method, headers } = from
    const on = request(new URL(from.url, url), { method, headers }, answer => {
      if (method === 'POST' && from.url === '/rest/v1/cards' && seen.push(headers['idempotency-key']) === 1) return from.socket.destroy()
      to.writeHead(answer.statusCode, answer.headers)
      answer.pipe(to)
    })
    on.on('error', () => to.destroy())
    to.on('close', () => on.destroy())
    from.pipe(on)
  })
  await new Promise(done => proxy.listen(0, '127.0.0.1', done))
  return { seen, at: `http://127.0.0.1:${proxy.address().port}`, close: () => proxy.close() }
}

test('a card that the browser sends again by itself is stored once', options, async () => {
  const { seen, at, close } = await breaking()
  const page = await open(await seat(''), at)
  const list = await newList('Breaking')
  mistakes.push = () => 0 // the browser itself tells of each request that failed
  await compose(page, list, 'Sent by the browser')
  await page.keyboard.press('Enter')
  await page.locator('[data-card]:not([data-unsaved])').filter({ hasText: 'Sent by the browser' }).waitFor()
  await eventually('an answer', async () => seen.length === 2 && await page.locator('[data-unsaved]').count() === 0)
  delete mistakes.push
  assert.equal(new Set(seen).size, 1)
  assert.equal(await sql("select count(*) from cards where title = 'Sent by the browser'"), '1')
  close()
})

/** A card whose title, `Saved`, is stored, while its answer is on the way until it is released. */
async function savingUnderWay() {
  const page = await open(await seat('Mia'))
  await signedIn(page)
  const id = await newCard('Before')
  await page.locator(`[data-card="${id}"]`).waitFor()
  await edit(page, id)
  await titleField(page, id).fill('Saved')
  const { opened, release } = gate()
  await intercept(page, 'PATCH', 'cards', async route => {
    const response = await route.fetch()
    await opened
    await route.fulfill({ response })
  }, 1)
  await page.keyboard.press('Enter')
  await eventually('the save', async () => await stored(id) === 'Saved')
  return { page, id, release }
}

test('what somebody else wrote while a save was under way is not overwritten by the next one', options, async () => {
  const { page, id, release } = await savingUnderWay()
  await page.keyboard.type(' and written on')
  await sql(`update cards set title = 'By somebody else', note = 'meanwhile' where id = ${id}`)
  await page.locator(`[data-card="${id}"] .note`).filter({ hasText: 'meanwhile' }).waitFor({ state: 'attached' })
  release()
  await page.locator(`[data-card="${id}"] form[data-state=writing]`).waitFor()
  await titleField(page, id).press('Enter')
  await page.locator(`[data-card="${id}"] form[data-state=conflict]`).waitFor()
  assert.equal(await stored(id), 'By somebody else')
  assert.equal(await titleField(page, id).inputValue(), 'Saved and written on')
})

test('whoever clears a title while it is saved is still writing', options, async () => {
  const { page, id, release } = await savingUnderWay()
  await titleField(page, id).fill('')
  release()
  await page.locator(`[data-card="${id}"] form[data-state=writing]`).waitFor()
  await page.keyboard.type('Anew')
  await page.keyboard.press('Enter')
  await editor(page, id).waitFor({ state: 'detached' })
  assert.equal(await stored(id), 'Anew')
})

test('what somebody else wrote and this screen has not drawn yet is not overwritten', options, async () => {
  const context = await seat('Mia')
  await context.addInitScript(() => {
    const frame = globalThis.requestAnimationFrame
    globalThis.requestAnimationFrame = draw => globalThis.frozen || frame(draw)
  })
  const [page, other] = [await open(context), await open(context)]
  for (const each of [page, other]) await signedIn(each)
  const id = await newCard('Drawn')
  for (const each of [page, other]) await each.locator(`[data-card="${id}"]`).waitFor()
  await page.evaluate(() => {
    globalThis.frozen = true
  })
  await sql(`update cards set title = 'Not drawn yet' where id = ${id}`)
  await other.locator(`[data-card="${id}"]`).filter({ hasText: 'Not drawn yet' }).waitFor()
  await page.waitForTimeout(200)
  await edit(page, id)
  assert.equal(await titleField(page, id).inputValue(), 'Drawn')
  await titleField(page, id).fill('Written over it')
  await titleField(page, id).press('Enter')
  await page.locator(`[data-card="${id}"] form[data-state=conflict]`).waitFor()
  assert.equal(await stored(id), 'Not drawn yet')
})

test('what is typed into a list that is removed stays until it is closed', options, async () => {
  const page = await open(await seat(''))
  const [composed, renamed] = [await newList('With a composer'), await newList('With a new title')]
  const section = id => page.locator(`[data-list="${id}"]`)
  await compose(page, composed, 'Half a sentence')
  await section(renamed).locator('.list-title').dblclick()
  await section(renamed).locator('[name=title]').fill('Half a title')
  await sql(`delete from lists where id in (${composed}, ${renamed})`)
  for (const id of [composed, renamed]) await section(id).locator('.removed').waitFor()
  assert.equal(await composer(page, composed).inputValue(), 'Half a sentence')
  assert.equal(await section(renamed).locator('[name=title]').inputValue(), 'Half a title')
  await section(renamed).locator('[name=title]').press('Enter')
  await page.locator('.toast[data-tone=trouble]').filter({ hasText: 'Half a title' }).waitFor()
  await section(renamed).waitFor({ state: 'detached' })

  mistakes.push = () => 0 // the browser itself tells of the write that is refused
  await composer(page, composed).press('Enter')
  await page.locator('.toast[data-tone=trouble]').filter({ hasText: 'Half a sentence' }).waitFor()
  delete mistakes.push
  assert.equal(await composer(page, composed).inputValue(), 'Half a sentence')
  await composer(page, composed).press('Escape')
  await section(composed).waitFor({ state: 'detached' })
})

test('what is opened and left as it was is not written', options, async () => {
  const page = await open(await seat('Mia'))
  await signedIn(page)
  let writes = 0
  await page.route('**/rest/v1/*', route => (route.request().method() === 'GET' || writes++, route.continue()))
  const list = await newList('From a file \n')
  const id = Number(await sql(`insert into cards (list_id, title, note) values (${list}, ' Blanks around ', E'one\\r\\ntwo\\n') returning id`))
  await page.locator(`[data-card="${id}"]`).waitFor()
  await edit(page, id)
  await titleField(page, id).press('Enter')
  await editor(page, id).waitFor({ state: 'detached' })
  const title = page.locator(`[data-list="${list}"] .list-title`)
  await title.dblclick()
  await page.keyboard.press('Enter')
  await page.locator(`[data-list="${list}"] .title-form`).waitFor({ state: 'detached' })
  // A write of its own comes after all others.
  await edit(page, id)
  await titleField(page, id).fill('Written')
  await titleField(page, id).press('Enter')
  await eventually('the write', async () => await stored(id) === 'Written')
  assert.equal(writes, 1)
  assert.equal(await sql(`select note = E'one\\r\\ntwo\\n' from cards where id = ${id}`), 't')
})

test('a reminder that is still being written is not shown to the next person', options, async () => {
  const page = await open(await seat('Priya'))
  await signedIn(page)
  await page.locator('#reminders-toggle').click()
  const { opened, release } = gate()
  await intercept(page, 'POST', 'reminders', async route => {
    await opened
    await route.continue()
  })
  await page.locator('#reminder-form input').fill('slow, for Priya alone')
  await page.keyboard.press('Enter')
  await page.locator('[data-reminder]').waitFor()
  await takeSeat(page, 'Tomás')
  await page.locator('[data-reminder]').waitFor({ state: 'detached' })
  release()
  await eventually('her reminder', async () => await sql("select name from people join reminders on person_id = people.id where text like 'slow%'") === 'Priya')
  assert.equal(await page.locator('[data-reminder]').count(), 0)
})

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

test('keys do what they did when a lifted card goes away', options, async () => {
  const page = await open(await seat(''))
  const [lifted, other] = [await newCard('Lifted and deleted'), await newCard('To be deleted by key')]
  for (const id of [lifted, other]) await page.locator(`[data-card="${id}"]`).waitFor()
  await page.locator(`[data-card="${lifted}"]`).press('Space')
  await page.keyboard.press('ArrowUp')
  await page.locator(`[data-card="${lifted}"][data-lifted]`).waitFor()
  await sql(`delete from cards where id = ${lifted}`)
  await page.locator(`[data-card="${lifted}"]`).waitFor({ state: 'detached' })
  await page.locator(`[data-card="${other}"]`).press('Delete')
  await page.locator(`[data-card="${other}"]`).waitFor({ state: 'detached' })
  await eventually('the delete', async () => await sql(`select count(*) from cards where id = ${other}`) === '0')
})

test('what is deleted by a key is put back by one, also after a while at the keys', options, async () => {
  const context = await seat('Mia')
  const page = await open(context)
  await signedIn(page)
  const [first, second] = [await newCard('Deleted first'), await newCard('Deleted second')]
  await page.clock.install()
  for (const id of [first, second]) {
    await page.locator(`[data-card="${id}"]`).press('Delete')
    await page.locator(`[data-card="${id}"]`).waitFor({ state: 'detached' })
  }
  const count = () => sql(`select count(*) from cards where id in (${first}, ${second})`)
  await eventually('the deletes', async () => await count() === '0')
  for (let n = 0; n < 4; n++) {
    await page.clock.runFor(5_000)
    await page.keyboard.press('ArrowUp')
  }
  await page.locator('.add-card').first().click()
  await page.keyboard.type('Written')
  await page.keyboard.press('Control+z')
  await page.keyboard.press('Escape')
  assert.equal(await page.locator('.toast').count(), 2, 'a field has an undo of its own')
  for (const id of [second, first]) {
    await page.keyboard.press('Control+z')
    await page.locator(`[data-card="${id}"]:focus`).waitFor()
  }
  await eventually('both cards', async () => await count() === '2')
  await page.locator(`[data-card="${first}"]`).press('Delete')
  await page.locator('.toast button').focus()
  await page.clock.runFor(10_000)
  await page.locator('.toast button').press('Enter')
  await page.locator(`[data-card="${first}"]:focus`).waitFor()
})

test('whoever works by keys has a place after what had the focus is gone', options, async () => {
  const page = await open(await seat('Mia'))
  await signedIn(page)
  const [list, beside] = [await newList('Alone'), await newList('Beside')]
  const section = page.locator(`[data-list="${list}"]`)
  const [one, two, three] = (await sql(`insert into cards (list_id, title, position) select ${list}, 'Card ' || n, n from generate_series(1, 3) n returning id`)).split('\n')
  const focused = selector => page.locator(`${selector}:focus`).waitFor()
  await page.locator(`[data-card="${three}"]`).waitFor()
  await page.locator(`[data-card="${one}"]`).press('Enter')
  await editor(page, one).locator('.remove').press('Enter')
  await focused(`[data-card="${two}"]`)
  await page.keyboard.press('Delete')
  await focused(`[data-card="${three}"]`)
  await sql(`delete from cards where id = ${three}`)
  await focused(`[data-list="${list}"] .add-card`)
  await section.locator('.list-title').press('Enter')
  await section.locator('.title-form .remove').press('Enter')
  await section.waitFor({ state: 'detached' })
  await focused('.list-title')
  await sql(`delete from lists where id = ${beside}`)

  await page.locator('#reminders-toggle').press('Enter')
  for (const text of ['one', 'two']) {
    await page.locator('#reminder-form input').fill(text)
    await page.keyboard.press('Enter')
  }
  await eventually('two reminders', async () => await sql("select count(*) from reminders where text in ('one', 'two')") === '2')
  await page.locator('[data-reminder] .reminder-drop').first().press('Enter')
  await focused('[data-reminder] .reminder-drop')
  await eventually('one of them', async () => await sql("select count(*) from reminders where text in ('one', 'two')") === '1')
  await page.keyboard.press('Enter')
  await focused('#reminders-close')
})

test('a menu that is left by Tab is closed', options, async () => {
  const page = await open(await seat('Mia'))
  const card = page.locator('[data-card]').first()
  await card.locator('.assignee').press('Enter')
  await page.locator('#menu').waitFor()
  await page.keyboard.press('Shift+Tab')
  await page.locator('#menu').waitFor({ state: 'hidden' })
  await card.locator('.edit:focus').waitFor()
})

test('a card that is added to a long list is seen', options, async () => {
  const page = await open(await seat(''))
  const list = await newList('Longer than the screen')
  await sql(`insert into cards (list_id, title, position) select ${list}, 'Card ' || n, n from generate_series(1, 40) n`)
  const cards = page.locator(`[data-list="${list}"] .card`)
  await cards.filter({ hasText: 'Card 40' }).waitFor({ state: 'attached' })
  await compose(page, list, 'Just added')
  await page.keyboard.press('Enter')
  const added = cards.filter({ hasText: 'Just added' })
  await added.waitFor()
  await eventually('it is seen', () => added.evaluate(card => {
    const { top, bottom } = card.getBoundingClientRect()
    const place = card.parentElement.getBoundingClientRect()
    return top >= place.top && bottom <= place.bottom + 1
  }))
})

test('the same news is told again to those who listen', options, async () => {
  const page = await open(await seat(''))
  await page.evaluate(() => {
    globalThis.told = []
    const voice = document.getElementById('voice')
    let before
    new MutationObserver(() => {
      if (voice.textContent !== before) globalThis.told.push((before = voice.textContent))
    }).observe(voice, { childList: true, characterData: true, subtree: true })
  })
  await page.locator('[data-list] [data-card]:first-child').first().focus()
  for (let n = 0; n < 3; n++) await page.keyboard.press('Alt+ArrowUp')
  assert.deepEqual(await page.evaluate(() => globalThis.told.map(text => text.trim())), Array(3).fill('The edge of the board.'))
})

test('a title that was cleared is asked for, and who leaves it so is told that it is kept', options, async () => {
  const page = await open(await seat('Mia'))
  await signedIn(page)
  const id = await newCard('Card with a title')
  const list = await newList('List with a title')
  const title = page.locator(`[data-list="${list}"] [name=title]`)
  const toCard = () => edit(page, id)
  const toList = () => page.locator(`[data-list="${list}"] .list-title`).dblclick()
  await page.locator(`[data-card="${id}"]`).waitFor()
  for (const [begin, field, words, kept] of [[toCard, titleField(page, id), 'A card needs a title.', 'Card with a title'], [toList, title, 'A list needs a title.', 'List with a title']]) {
    await begin()
    await field.fill(' ')
    await field.press('Enter')
    assert.equal(await field.evaluate(field => field.validationMessage), words)
    await field.pressSequentially(kept)
    await field.press('Enter')
    await field.waitFor({ state: 'detached' })
    await begin()
    await field.fill('')
    await page.locator('#activity-toggle').click()
    await field.waitFor({ state: 'detached' })
    await page.locator('.toast').filter({ hasText: `“${kept}” keeps its title` }).waitFor()
  }
})

test('a field takes as many letters as the database, whatever they are', options, async () => {
  const page = await open(await seat('Mia'))
  await signedIn(page)
  const id = await newCard('🦊'.repeat(150))
  await page.locator(`[data-card="${id}"]`).waitFor()
  await edit(page, id)
  const field = titleField(page, id)
  await field.press('End')
  await page.keyboard.type('and on')
  await page.keyboard.insertText('🦉'.repeat(60))
  await page.keyboard.type('x')
  await field.press('Enter')
  await editor(page, id).waitFor({ state: 'detached' })
  const full = '🦊'.repeat(150) + 'and on' + '🦉'.repeat(44)
  await eventually('the title', async () => await stored(id) === full)
  await edit(page, id)
  await page.keyboard.insertText('a'.repeat(300))
  await field.press('Home')
  await page.keyboard.type('x')
  assert.equal(await field.inputValue(), 'a'.repeat(200))
  await field.press('Escape')
})

test('the keys of an input method are its own', options, async () => {
  const page = await open(await seat('Mia'))
  await signedIn(page)
  // Safari ends the composition before it tells of the key that confirmed it.
  const press = (field, key, how) => field.evaluate((field, init) => field.dispatchEvent(new KeyboardEvent('keydown', { bubbles: true, cancelable: true, ...init })), { key, ...how })
  await page.locator('[data-list] .add-card').first().click()
  const title = page.locator('form.composer [name=title]')
  await title.fill('みつもり')
  await page.locator('#reminders-toggle').click()
  const reminder = page.locator('#reminder-form [name=text]')
  await reminder.fill('みつ')
  for (const how of [{ isComposing: true }, { keyCode: 229 }]) {
    await press(title, 'Enter', how)
    await press(title, 'Escape', how)
    await press(reminder, 'Escape', how)
  }
  assert.equal(await title.inputValue(), 'みつもり')
  assert.ok(await reminder.isVisible())
})

test('a browser that keeps nothing shows the board, and whoever signs in sits there while the page lives', options, async () => {
  const context = await seat()
  await context.addInitScript(() => Object.defineProperty(globalThis, 'localStorage', {
    get() {
      throw new DOMException('Access is denied for this document.', 'SecurityError')
    },
  }))
  const page = await open(context)
  await page.locator('#sign-in-name').fill('Mia')
  await page.keyboard.press('Enter')
  await signedIn(page)
  await page.locator('#activity-toggle').click()
  assert.equal(await page.locator('.me-name').textContent(), 'Mia')
})

test('a board that is refused says why', options, async () => {
  const context = await seat('', { alone: true })
  const page = await context.newPage()
  const told = { upToDate: false, error: { code: 'RCH08', message: 'this user has 100 open streams' }, retry_ms: 12_000 }
  await page.route('**/rest/v1/cards*', route => route.fulfill({ contentType: 'text/event-stream', body: `retry: 12000\nevent: control\nid: 0\ndata: ${JSON.stringify(told)}\n\n` }))
  await page.goto(url)
  const text = page.locator('#status-text').filter({ hasText: 'this user has 100 open streams' })
  await text.waitFor({ timeout: 20_000 })
  // On a phone, too, which has no pointer that could ask for what was cut off.
  await page.setViewportSize({ width: 320, height: 640 })
  const [wanted, given] = await text.evaluate(text => [text.scrollWidth, text.clientWidth])
  assert.ok(wanted <= given, `${wanted} of ${given} pixels`)
})

test('a page that stands before the sign-in is not asked in a circle', options, async () => {
  const context = await seat('Mia', { alone: true })
  let asked = 0
  await context.route('**/demo/sign-in', route => ++asked && route.fulfill({ contentType: 'text/html', body: '<h1>Welcome to our network</h1>' }))
  const page = await context.newPage()
  await page.goto(url)
  await page.locator('#status-text').filter({ hasText: 'the sign-in gave no token' }).waitFor({ timeout: 20_000 })
  assert.ok(asked < 20, `${asked} times`)
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

test('a board that was out of sight for long is not busy with all that happened when somebody looks again', options, async () => {
  const context = await seat('')
  // A page out of sight gets no frames, and all that were asked for when it is seen again.
  await context.addInitScript(() => {
    globalThis.waiting = []
    const frame = globalThis.requestAnimationFrame
    globalThis.requestAnimationFrame = draw => (document.hidden ? globalThis.waiting.push(draw) : frame(draw))
    globalThis.leave = away => Object.defineProperty(document, 'hidden', { configurable: true, value: away })
  })
  const page = await open(context)
  const [id, gone] = [await newCard('Before'), await newCard('To go')]
  await page.locator(`[data-card="${gone}"]`).waitFor()
  await page.evaluate(() => globalThis.leave(true))
  await sql(`do $$ begin for n in 1..300 loop update cards set title = 'Change ' || n where id = ${id}; commit; end loop; end $$`)
  await sql(`update cards set title = 'Gone' where id = ${gone}`)
  await sql(`delete from cards where id = ${gone}`)
  await page.locator(`[data-card="${gone}"]`).waitFor({ state: 'detached' })
  assert.equal(await page.evaluate(() => globalThis.waiting.length), 1)
  await page.evaluate(() => {
    globalThis.leave(false)
    for (const draw of globalThis.waiting) draw()
  })
  await page.locator(`[data-card="${id}"][data-glow]`).filter({ hasText: 'Change 300' }).waitFor()
  assert.equal(await page.locator('[data-glow]').count(), 1)
})

test('the way of many cards is found by laying the board out a few times, and not once for each', options, async () => {
  const page = await open(await seat(''))
  await page.emulateMedia({ reducedMotion: 'no-preference' })
  const list = await newList('Long')
  await sql(`insert into cards (list_id, title, position) select ${list}, 'Card ' || n, n from generate_series(1, 60) n`)
  const last = text => page.locator(`[data-list="${list}"] .card:last-child .title`).filter({ hasText: text }).waitFor()
  await last('Card 60')
  await page.waitForFunction(() => [...document.querySelectorAll('.card')].every(card => !card.getAnimations().length))
  const devtools = await page.context().newCDPSession(page)
  await devtools.send('Performance.enable')
  const layouts = async () => (await devtools.send('Performance.getMetrics')).metrics.find(({ name }) => name === 'LayoutCount').value
  const before = await layouts()
  await sql(`update cards set position = 100 where list_id = ${list} and position = 1`)
  await last(/Card 1$/)
  const found = await layouts() - before
  assert.ok(found < 30, `${found} times`)
})

test('among many cards only the one that changed is written, and only those in sight are set in motion', options, async () => {
  const page = await open(await seat(''))
  await page.emulateMedia({ reducedMotion: 'no-preference' })
  const list = await newList('Far longer than the screen')
  await sql(`insert into cards (list_id, title, position) select ${list}, 'Row ' || n, n from generate_series(1, 200) n`)
  const section = page.locator(`[data-list="${list}"]`)
  const card = text => section.locator('.card').filter({ has: page.locator('.title').filter({ hasText: text }) })
  await card(/^Row 200$/).waitFor({ state: 'attached' })
  await section.scrollIntoViewIfNeeded()
  await page.evaluate(() => {
    globalThis.written = new Set()
    new MutationObserver(records => {
      for (const { target } of records) globalThis.written.add(target.closest?.('[data-card]'))
    }).observe(document.getElementById('board'), { childList: true, subtree: true })
    globalThis.moving = 0
    const { animate } = Element.prototype
    Element.prototype.animate = function (...how) {
      globalThis.moving++
      return animate.apply(this, how)
    }
  })
  await sql(`update cards set title = 'Changed', position = 50.5 where list_id = ${list} and position = 1`)
  await card('Changed').waitFor({ state: 'attached' })
  const [written, moving] = await page.evaluate(() => [[...globalThis.written].filter(Boolean).length, globalThis.moving])
  assert.equal(written, 1)
  assert.ok(moving > 0 && moving < 30, `${moving} are set in motion`)
})

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

test('a board that is open becomes a wall, and a board again, by its URL alone', options, async () => {
  const page = await open(await seat(''))
  for (const on of [true, false]) {
    await page.goto(on ? `${url}/#wall` : `${url}/#`)
    await page.waitForFunction(on => 'wall' in document.documentElement.dataset === on, on)
    await page.locator('[data-status=live]').first().waitFor({ state: 'attached' })
  }
})
