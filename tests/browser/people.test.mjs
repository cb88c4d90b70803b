// Signed-in people on the demo board: who they are, what only they see, and two of them at one card.
import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { edit, editor, intercept, mistakes, newCard, open, options, seat, signedIn, sql, stored, takeSeat, titleField } from './seats.mjs'

test('the board is there without a name, asks for one once, and remembers it', options, async () => {
  const context = await seat()
  const page = await open(context)
  const dialog = page.locator('#sign-in')
  await dialog.waitFor()
  assert.equal(await page.locator('#sign-in-name').evaluate(field => field === document.activeElement), true)
  await page.keyboard.press('Escape')
  await dialog.waitFor({ state: 'hidden' })
  assert.equal(await page.locator('#reminders-toggle').isVisible(), false, 'a visitor has no reminders')
  await page.reload()
  await page.locator('[data-status=live] [data-card]').first().waitFor()
  assert.equal(await dialog.isVisible(), false, 'nobody is asked twice')

  await page.locator('#me').click()
  await page.locator('#sign-in-name').fill('Zoë Newcomer')
  await page.keyboard.press('Enter')
  await signedIn(page)
  assert.equal(await page.locator('.me-name').textContent(), 'Zoë Newcomer')
  assert.equal(await sql("select count(*) from people where name = 'Zoë Newcomer'"), '1')

  const second = await open(context)
  await signedIn(second)
  await second.locator('#me').click()
  await second.getByRole('menuitem', { name: 'Sign out' }).click()
  for (const each of [page, second]) await each.locator('.me-name').filter({ hasText: 'Sign in' }).waitFor()
  assert.equal(await page.locator('#reminders-toggle').isVisible(), false)
})

test('the diary has the name in the token, whatever the page says', options, async () => {
  const page = await open(await seat('Jonas'))
  await signedIn(page)
  const id = await newCard('Whose is it')
  await edit(page, id)
  await titleField(page, id).fill('Jonas wrote this')
  await intercept(page, 'PATCH', 'cards', (route, request) => {
    const body = request.postDataJSON()
    route.continue({ postData: JSON.stringify({ ...body, changed_by: 'Mallory' }) })
  })
  await page.keyboard.press('Enter')
  await editor(page, id).waitFor({ state: 'detached' })
  assert.equal(await sql(`select who from activity where card_id = ${id} order by id desc limit 1`), 'Jonas')
})

test('among many people the last can be chosen, too', options, async () => {
  await sql("insert into people (name) select 'Guest ' || n from generate_series(1, 60) n")
  const page = await open(await seat('Mia'))
  const id = await newCard('For nobody')
  await page.locator(`[data-card="${id}"] .assignee`).click()
  await page.locator('#menu button').filter({ hasText: /Guest 9$/ }).click()
  await page.locator(`[data-card="${id}"] .assignee[title="Guest 9"]`).waitFor()
  await sql("delete from people where name like 'Guest %'")
})

test('a reminder shows in all windows of its person and nowhere else', options, async () => {
  // Without a shared worker, so that all her streams are in sight.
  const [mia, aiko] = [await seat('Mia'), await seat('Aiko', { alone: true })]
  const [first, second, other] = [await open(mia), await open(mia), await open(aiko)]
  const heard = []
  const session = await aiko.newCDPSession(other)
  await session.send('Network.enable')
  session.on('Network.eventSourceMessageReceived', ({ data }) => heard.push(data))
  for (const page of [first, second, other]) {
    await signedIn(page)
    await page.locator('#reminders-toggle').click()
  }
  await first.locator('#reminder-form input').fill('canary for Mia alone')
  await first.keyboard.press('Enter')
  for (const page of [first, second]) await page.locator('[data-reminder]').filter({ hasText: 'canary' }).waitFor()
  const [id] = (await sql("select id from reminders where text like 'canary%'")).split('\n')
  await second.locator(`[data-reminder="${id}"] input`).check()
  await first.locator(`[data-reminder="${id}"][data-done]`).waitFor()

  // Something that all see, committed later: what is not here by then does not come.
  await sql("update cards set note = 'after the canary' where id = 4")
  await other.locator('[data-card="4"]').filter({ hasText: 'after the canary' }).waitFor()
  assert.ok(heard.some(data => data.includes('after the canary')))
  assert.equal(heard.some(data => data.includes('alone')), false)
  assert.equal(await other.locator('[data-reminder]').count(), 0)

  await sql(`delete from reminders where id = ${id}`)
  for (const page of [first, second]) await page.locator('[data-reminder]').waitFor({ state: 'detached' })
  assert.equal(heard.some(data => data.includes('alone')), false)
})

test('another person at the same browser does not see the reminders of the first', options, async () => {
  const page = await open(await seat('Priya'))
  await signedIn(page)
  await page.locator('#reminders-toggle').click()
  await page.locator('#reminder-form input').fill('for Priya')
  await page.keyboard.press('Enter')
  await page.locator('[data-reminder]').waitFor()
  await takeSeat(page, 'Tomás')
  await page.locator('[data-reminder]').waitFor({ state: 'detached' })
  await page.locator('#reminder-form input').fill('for Tomás')
  await page.keyboard.press('Enter')
  await page.locator('[data-reminder]').filter({ hasText: 'for Tomás' }).waitFor()
  assert.equal(await page.locator('[data-reminder]').count(), 1)
})

/** Two people with the same card open, who have typed different titles; the second has saved his. */
async function quarrel(title) {
  const [mia, jonas] = [await open(await seat('Mia')), await open(await seat('Jonas'))]
  for (const page of [mia, jonas]) await signedIn(page)
  const id = await newCard(title)
  for (const page of [mia, jonas]) {
    await page.locator(`[data-card="${id}"]`).waitFor()
    await edit(page, id)
  }
  await titleField(mia, id).fill('What Mia typed')
  await titleField(jonas, id).fill('What Jonas typed')
  await jonas.keyboard.press('Enter')
  await editor(jonas, id).waitFor({ state: 'detached' })
  // A quiet notice, and the text is untouched.
  await editor(mia, id).locator('.meanwhile').filter({ hasText: 'Jonas changed the title: “What Jonas typed”' }).waitFor()
  await mia.keyboard.type(' and typed')
  assert.equal(await titleField(mia, id).inputValue(), 'What Mia typed and typed')
  await mia.keyboard.press('Enter')
  await mia.locator(`[data-card="${id}"] form[data-state=conflict]`).waitFor()
  assert.equal(await stored(id), 'What Jonas typed', 'nobody was overwritten')
  const theirs = editor(mia, id).locator('.theirs[data-field=title]')
  assert.equal(await theirs.locator('.theirs-text').textContent(), 'What Jonas typed')
  assert.equal(await theirs.locator('.theirs-who').textContent(), 'Jonas')
  return { mia, jonas, id }
}

test('who comes second sees the other text, loses no keystroke, and keeps his own by saying so', options, async () => {
  const { mia, jonas, id } = await quarrel('To be kept')
  await mia.keyboard.type('!')
  assert.equal(await titleField(mia, id).inputValue(), 'What Mia typed and typed!')
  await editor(mia, id).getByRole('button', { name: 'Keep mine' }).click()
  await editor(mia, id).waitFor({ state: 'detached' })
  assert.equal(await stored(id), 'What Mia typed and typed!')
  await jonas.locator(`[data-card="${id}"] .title`).filter({ hasText: 'What Mia typed and typed!' }).waitFor()
})

test('theirs can be taken, and what only one has edited is kept', options, async () => {
  const { mia, id } = await quarrel('To be taken')
  await mia.locator(`[data-card="${id}"] [name=note]`).fill('a note of Mia')
  await editor(mia, id).getByRole('button', { name: 'Take theirs' }).click()
  await editor(mia, id).waitFor({ state: 'detached' })
  assert.equal(await sql(`select title, note from cards where id = ${id}`), 'What Jonas typed|a note of Mia')
})

test('editing on goes from both texts, and a third version is a quarrel again', options, async () => {
  const { mia, id } = await quarrel('To be edited on')
  await editor(mia, id).getByRole('button', { name: 'Edit on' }).click()
  await titleField(mia, id).fill('Both, by Mia')
  assert.equal(await editor(mia, id).locator('.theirs').isVisible(), true, 'the other text stays in sight')
  await sql(`update cards set title = 'A third' where id = ${id}`)
  await editor(mia, id).locator('.meanwhile').filter({ hasText: 'A third' }).waitFor()
  await mia.keyboard.press('Enter')
  await mia.locator(`[data-card="${id}"] form[data-state=conflict]`).waitFor()
  await editor(mia, id).getByRole('button', { name: 'Keep mine' }).click()
  await editor(mia, id).waitFor({ state: 'detached' })
  assert.equal(await stored(id), 'Both, by Mia')
})

test('a card that was only moved meanwhile is no quarrel', options, async () => {
  const mia = await open(await seat('Mia'))
  await signedIn(mia)
  const id = await newCard('Moved under the pen')
  await mia.locator(`[data-card="${id}"]`).waitFor()
  await edit(mia, id)
  await titleField(mia, id).fill('Renamed all the same')
  await sql(`update cards set position = position + 1, note = 'written elsewhere' where id = ${id}`)
  await editor(mia, id).locator('.meanwhile').filter({ hasText: 'written elsewhere' }).waitFor()
  await mia.keyboard.press('Enter')
  await editor(mia, id).waitFor({ state: 'detached' })
  assert.equal(await sql(`select title, note from cards where id = ${id}`), 'Renamed all the same|written elsewhere')
})

/** The title of a list in two hands: Mia has typed, and somebody else was faster. */
async function dispute(title) {
  const mia = await open(await seat('Mia'))
  await signedIn(mia)
  const list = Number(await sql(`insert into lists (title, position) values ('${title}', 500) returning id`))
  const section = mia.locator(`[data-list="${list}"]`)
  const form = section.locator('.title-form')
  await section.locator('.list-title').dblclick()
  await form.locator('[name=title]').fill('What Mia calls it')
  await sql(`update lists set title = 'Called otherwise' where id = ${list}`)
  await section.locator('.list-title').filter({ hasText: 'Called otherwise' }).waitFor({ state: 'attached' })
  await mia.keyboard.press('Enter')
  await form.and(mia.locator('[data-state=conflict]')).waitFor()
  const called = () => sql(`select title from lists where id = ${list}`)
  assert.equal(await called(), 'Called otherwise', 'nobody was overwritten')
  assert.equal(await form.locator('.theirs-text').textContent(), 'Called otherwise')
  assert.equal(await form.locator('[name=title]').inputValue(), 'What Mia calls it')
  return { mia, list, section, form, called }
}

test('the title of a list that somebody else changed meanwhile is not overwritten before its writer says so', options, async () => {
  const { mia, list, form, called } = await dispute('Disputed')
  await form.getByRole('button', { name: 'Edit on' }).click()
  await mia.keyboard.type('!')
  await sql(`update lists set title = 'A third' where id = ${list}`)
  await mia.locator(`[data-list="${list}"] .list-title`).filter({ hasText: 'A third' }).waitFor({ state: 'attached' })
  await mia.keyboard.press('Enter')
  await form.locator('.theirs-text').filter({ hasText: 'A third' }).waitFor()
  await form.getByRole('button', { name: 'Keep mine' }).click()
  await form.waitFor({ state: 'detached' })
  assert.equal(await called(), 'What Mia calls it!')
})

test('the title that somebody else gave a list can be taken', options, async () => {
  const { section, form, called } = await dispute('To be given up')
  await form.getByRole('button', { name: 'Take theirs' }).click()
  await form.waitFor({ state: 'detached' })
  assert.equal(await section.locator('.list-title').textContent(), 'Called otherwise')
  assert.equal(await called(), 'Called otherwise')
})

test('a list that was only moved meanwhile is no quarrel, and one that is not reached keeps its text', options, async () => {
  const mia = await open(await seat('Mia'))
  await signedIn(mia)
  const list = Number(await sql("insert into lists (title, position) values ('Moved', 500) returning id"))
  const form = mia.locator(`[data-list="${list}"] .title-form`)
  await mia.locator(`[data-list="${list}"] .list-title`).dblclick()
  await form.locator('[name=title]').fill('Renamed all the same')
  await sql(`update lists set position = 501 where id = ${list}`)
  const back = await intercept(mia, 'PATCH', 'lists', route => route.abort())
  mistakes.push = () => 0 // the browser itself tells of each request that failed
  await mia.keyboard.press('Enter')
  await mia.locator('.toast[data-tone=trouble]').waitFor()
  assert.equal(await form.locator('[name=title]').inputValue(), 'Renamed all the same')
  await back()
  delete mistakes.push
  await form.locator('[name=title]').press('Enter')
  await form.waitFor({ state: 'detached' })
  assert.equal(await sql(`select title from lists where id = ${list}`), 'Renamed all the same')
})

test('whoever goes on to another field while a title is written writes there', options, async () => {
  const mia = await open(await seat('Mia'))
  const list = Number(await sql("insert into lists (title, position) values ('Left', 500) returning id"))
  await mia.locator('.add-card').first().click()
  await mia.keyboard.type('half')
  await mia.locator(`[data-list="${list}"] .list-title`).dblclick()
  await mia.keyboard.type('Left for another field')
  await mia.locator('form.composer textarea').click()
  await mia.keyboard.type(' more')
  assert.equal(await mia.locator('form.composer textarea').inputValue(), 'half more')
  await mia.locator(`[data-list="${list}"] .list-title`).filter({ hasText: 'Left for another field' }).waitFor()
})

test('what cannot be saved stays in the editor', options, async () => {
  const mia = await open(await seat('Mia'))
  await signedIn(mia)
  const id = await newCard('Without a network')
  await mia.locator(`[data-card="${id}"]`).waitFor()
  await edit(mia, id)
  await titleField(mia, id).fill('Typed in a tunnel')
  const back = await intercept(mia, 'PATCH', 'cards', route => route.abort())
  mistakes.push = () => 0 // the browser itself tells of each request that failed
  await mia.keyboard.press('Enter')
  await mia.locator('.toast[data-tone=trouble]').waitFor()
  assert.equal(await titleField(mia, id).inputValue(), 'Typed in a tunnel')
  await back()
  delete mistakes.push
  await titleField(mia, id).press('Enter')
  await editor(mia, id).waitFor({ state: 'detached' })
  assert.equal(await stored(id), 'Typed in a tunnel')
})

test('what was typed into a card that is gone stays until the card is back', options, async () => {
  const mia = await open(await seat('Mia'))
  await signedIn(mia)
  const id = await newCard('To be deleted')
  await mia.locator(`[data-card="${id}"]`).waitFor()
  await edit(mia, id)
  await titleField(mia, id).fill('Typed all the same')
  await sql(`delete from cards where id = ${id}`)
  await mia.locator(`[data-card="${id}"][data-gone]`).waitFor()
  const back = await intercept(mia, 'POST', 'cards', route => route.abort())
  mistakes.push = () => 0 // the browser itself tells of each request that failed
  await titleField(mia, id).press('Enter')
  await mia.locator('.toast[data-tone=trouble]').waitFor()
  assert.equal(await titleField(mia, id).inputValue(), 'Typed all the same')
  await back()
  delete mistakes.push
  await titleField(mia, id).press('Enter')
  await editor(mia, id).waitFor({ state: 'detached' })
  assert.equal(await stored(id), 'Typed all the same')
})

/** The sign-in of the relay, with tokens that live for so many seconds. */
async function shortLived(context, seconds) {
  const [, directory] = /host=(.*)\/run/.exec(process.env.ROWCAST_DATABASE)
  const secret = await readFile(`${directory}/demo-secret`, 'utf8')
  const count = { tokens: 0 }
  await context.route('**/demo/sign-in', async route => {
    const answer = await route.fetch()
    const told = await answer.json()
    const [header, payload] = told.token.split('.')
    const claims = JSON.parse(Buffer.from(payload, 'base64url'))
    claims.exp = claims.iat + seconds
    const message = `${header}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}`
    const token = `${message}.${createHmac('sha256', secret).update(message).digest('base64url')}`
    count.tokens++
    await route.fulfill({ json: { ...told, token, expires_in: seconds } })
  })
  return count
}

for (const alone of [false, true]) {
  test(`a screen misses nothing while its tokens expire and its streams end${alone ? ', without a shared worker, too' : ''}`, options, async () => {
    const context = await seat('Mia', { alone })
    const count = await shortLived(context, 4)
    const tickets = []
    context.on('request', request => request.url().endsWith('/tickets') && tickets.push(request))
    const page = await open(context)
    await signedIn(page)
    const id = await newCard('Counting')
    await page.locator(`[data-card="${id}"]`).waitFor()
    await sql('delete from reminders')
    const change = n => sql(`update cards set title = 'Counted to ${n}' where id = ${id}; insert into reminders (person_id, text) select id, 'tick ${n}' from people where name = 'Mia'`)
    const seen = async n => {
      await page.locator(`[data-card="${id}"] .title`).filter({ hasText: new RegExp(`^Counted to ${n}$`) }).waitFor()
      await page.locator('.reminder-text').filter({ hasText: new RegExp(`^tick ${n}$`) }).waitFor({ state: 'attached' })
    }
    await page.evaluate(() => {
      globalThis.statuses = []
      new MutationObserver(() => globalThis.statuses.push(document.documentElement.dataset.status)).observe(document.documentElement, { attributes: true, attributeFilter: ['data-status'] })
    })
    const before = tickets.length
    const begun = Date.now()
    // Three tokens end in this time, and every stream with them.
    for (let n = 0; Date.now() - begun < 14_000; n++) {
      await change(n)
      await seen(n)
    }
    assert.ok(count.tokens >= 3, `${count.tokens} tokens`)
    if (alone) assert.ok(tickets.length >= before + 8, `${tickets.length} tickets after ${before}`)
    assert.deepEqual(await page.evaluate(() => globalThis.statuses), [], 'nobody was told of it')
    await sql('delete from reminders')
  })
}
