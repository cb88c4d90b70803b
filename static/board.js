/**
 * The demo board: live views, laid out as lists of cards, and the hands that change them.
 *
 * Hooks for tests:
 *   <html data-status="connecting|live|stale|lost" data-wall>   how far the screen may be trusted
 *   [data-list="<id>"]                     a list; .list-title, .add-card, form.composer inside
 *   [data-card="<id>"]                     a card (`new-1` until it is stored); .title, .note,
 *                                          .by-name, .assignee, .edit inside
 *     [data-glow] changed elsewhere just now    [data-lifted] moved by keyboard, not dropped yet
 *     [data-editing] with form.editor inside    [data-dragged] in hand, not shown
 *       form.editor[data-state="writing|saving|conflict"]; .meanwhile, .conflict inside
 *   [data-placeholder]                     where a dragged card would land
 *   [data-entry="<id>"]                    a line of the activity
 *   .toast[data-tone="trouble"]            a write that was refused
 *   [data-reminder="<id>"]                 a private reminder
 *   #sign-in                               the dialog that asks for a name; #me opens it again
 *   #menu [data-person="<id>"]             who can be given a card
 *   #activity-toggle, #reminders-toggle, #wall-toggle, #new-list
 */
import { follow, retell } from './activity.js'
import { draggable } from './drag.js'
import { compose, edit, entitle, meanwhile } from './editor.js'
import { Lists, idOf } from './lists.js'
import { greet, know, me, person, pick } from './people.js'
import { Pending } from './pending.js'
import { remember } from './reminders.js'
import { unique, view } from './rowcast.js'
import { bearer, isMember, name, onChange } from './session.js'
import { watchOver } from './status.js'
import { refresh } from './time.js'
import { announce, refused, toast } from './toast.js'

const views = Object.fromEntries(['people', 'lists', 'cards', 'activity'].map(table => [table, view(`/rest/v1/${table}`, { key: 'id', token: bearer })]))
const root = document.getElementById('board')
const newList = document.getElementById('new-list')
const lists = new Lists(root, newList)
const ready = new Set()
const pending = new Pending(views, {
  changed: () => {
    draw()
    reminders.draw()
  },
  renamed: (table, from, to) => {
    lists.rename(table, from, to)
    if (lifted === from) lifted = to
  },
}, bearer, name)
const reminders = remember(views, pending, id => show(id))

/* ---- what is shown ------------------------------------------------------------------------- */

let asked = false

/** Draws once per frame, however many streams have news. */
function draw() {
  if (asked) return
  asked = true
  // A hidden page gets no frames; it must not fall behind for that.
  if (document.hidden) queueMicrotask(drawNow)
  else requestAnimationFrame(drawNow)
}

function drawNow() {
  asked = false
  if (ready.size < 3) return
  document.getElementById('quiet').hidden = true
  document.documentElement.dataset.drawn = ''
  const shown = pending.rows('lists')
  const known = new Set(shown.map(({ id }) => id))
  lists.draw(shown, pending.rows('cards').filter(card => known.has(card.list_id)))
  if (lifted !== null && !lists.cards.has(lifted)) letGo()
  meanwhile()
  rove()
}

for (const table of ['people', 'lists', 'cards']) {
  views[table].subscribe(rows => {
    // Whoever takes the seat may see this board, too: it stays until his own rows are here.
    if (!views[table].ready) return ready.delete(table)
    ready.add(table)
    if (table === 'people') {
      know(rows)
      retell()
      greet()
    }
    draw()
  })
}

/** Who has changed which cards since the last frame: out of sight there is none for hours, and the news are many. */
const glowing = new Map()

views.cards.on('change', ({ operation, value, key }) => {
  const id = idOf(key)
  if (operation === 'delete') return glowing.delete(id)
  if (!value || pending.has('cards', id)) return
  draw()
  if (!glowing.size) requestAnimationFrame(glow)
  glowing.set(id, value.changed_by)
})

function glow() {
  lists.glow(glowing)
  glowing.clear()
}

watchOver([views.people, views.lists, views.cards])
follow(views.activity)
onChange(() => {
  for (const each of Object.values(views)) each?.renew()
})
setInterval(() => {
  refresh(root)
  retell()
}, 20_000)

/* ---- what is done -------------------------------------------------------------------------- */

/** A member is named by his token; a visitor's word is all there is. */
const signed = fields => ({ ...fields, changed_by: me() })
const now = () => new Date().toISOString()
const titleOf = id => `“${lists.cards.get(id)?.title ?? 'The card'}”`

/** Waits for a write; a refusal is told, and the board has already gone back to what is stored. */
async function attempt(what, doing) {
  try {
    return { row: await doing }
  } catch (error) {
    refused(what, error)
    return null
  }
}

const end = list => (lists.cardsIn(list).at(-1)?.position ?? 0) + 1

/** Adds a card; with what was `sent` before, it is the same request again, and stored once. */
function add(list, title, sent) {
  if (sent.fields?.changed_by !== me()) Object.assign(sent, { fields: signed({ list_id: list, title, position: end(list) }), once: unique() })
  return attempt(`“${title}” was not added`, pending.insert('cards', sent.fields, { note: '', assignee: null, changed_at: now() }, sent.once))
}

async function change(id, fields, what) {
  const title = titleOf(id)
  const done = await attempt(`${title} was not ${what}`, pending.update('cards', id, signed(fields), { changed_at: now() }))
  if (done && !done.row) toast(`${title} had been deleted meanwhile.`)
}

/** Writes what was edited in a card, unless it is another version by then (RowcastError, 412). */
const save = (id, fields, etag) => pending.update('cards', id, signed(fields), { changed_at: now() }, etag)

/** Makes a deleted card anew, in its list or, if that is gone too, in the first one. */
function restore({ id, list_id, title, note, assignee, position, created_at }) {
  const list = lists.lists.has(list_id) ? list_id : lists.inOrder()[0]?.id
  return pending.insert('cards', signed({ id, list_id: list, title, note, assignee, position, created_at }), { changed_at: now() })
}

async function remove(id) {
  const row = lists.cards.get(id)
  if (!row) return
  const doing = pending.delete('cards', id, isMember() ? undefined : { changed_by: me() })
  announce(`${row.title}, deleted. Control Z puts it back.`)
  const undo = () => {
    attempt(`“${row.title}” was not put back`, restore(row))
    drawNow()
    show(id)
    announce(`${row.title}, put back.`)
  }
  toast(`Deleted “${row.title}”`, { action: 'Undo', act: () => doing.then(undo, () => {}) })
  await attempt(`“${row.title}” was not deleted`, doing)
}

/** The position between two neighbours; NaN when a double can no longer tell it from them. */
function between(before, after) {
  if (!before && !after) return 1
  if (!before) return after.position - 1
  if (!after) return before.position + 1
  const middle = (before.position + after.position) / 2
  return after.position - before.position > 1e-9 && middle > before.position && middle < after.position ? middle : NaN
}

/** Where a card would stand as the nth of a list, not counting itself. */
function placeAt(id, list, index) {
  const others = lists.cardsIn(list).filter(card => card.id !== id)
  return { list_id: list, position: between(others[index - 1], others[index]) }
}

function move(id, list, index) {
  const row = lists.cards.get(id)
  if (!row) return draw()
  if (row.list_id === list && lists.cardsIn(list).findIndex(card => card.id === id) === index) return draw()
  const place = placeAt(id, list, index)
  if (!Number.isNaN(place.position)) return change(id, place, 'moved')
  // Halved too often: number the list anew, with this card in its place.
  const others = lists.cardsIn(list).filter(card => card.id !== id)
  others.splice(index, 0, row)
  others.forEach((card, n) => change(card.id, { list_id: list, position: n + 1 }, 'moved'))
}

function assign(id, anchor) {
  pick(anchor, lists.cards.get(id)?.assignee, 'Nobody', assignee => {
    const given = person(assignee)?.name ?? 'nobody'
    announce(`Given to ${given}.`)
    change(id, { assignee }, `given to ${given}`)
  })
}

/** Leads the eye to a card. */
function show(id) {
  const item = lists.item(id)
  item?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
  item?.focus({ preventScroll: true })
}

/** A row as the stream has it, and its version. */
const stored = (table, id) => ({ row: views[table].rows.get(String(id)), etag: views[table].etag(String(id)) })

const editing = {
  save,
  remove,
  restore,
  redraw: draw,
  stored: id => stored('cards', id),
  remind: id => reminders.add(lists.cards.get(id).title, id),
}

draggable(lists, { drop: move, redraw: draw })

/* ---- clicks -------------------------------------------------------------------------------- */

root.addEventListener('click', event => {
  const item = event.target.closest('[data-card]')
  const section = event.target.closest('[data-list]')
  const button = event.target.closest('button')
  if (!button) return
  if (button.classList.contains('edit')) edit(lists, idOf(item.dataset.card), editing)
  else if (button.classList.contains('assignee')) assign(idOf(item.dataset.card), button)
  else if (button.classList.contains('add-card')) compose(section, (title, sent) => add(idOf(section.dataset.list), title, sent), draw)
  else if (button.classList.contains('new-list-open')) addList(button)
  // A click made by the keyboard has no position; a pointer's first click only takes the focus.
  else if (button.classList.contains('list-title') && event.detail === 0) rename(section)
})

root.addEventListener('dblclick', event => {
  const item = event.target.closest('[data-card]')
  if (event.target.closest('.list-title')) rename(event.target.closest('[data-list]'))
  else if (item && !event.target.closest('button, form')) edit(lists, idOf(item.dataset.card), editing)
})

function addList(button) {
  const save = title => {
    const position = (lists.inOrder().at(-1)?.position ?? 0) + 1
    attempt(`“${title}” was not added`, pending.insert('lists', { title, position }))
  }
  entitle(button, '', { save })
}

function rename(section) {
  // One that was just made gets its own id meanwhile.
  const id = () => idOf(section.dataset.list)
  const row = lists.lists.get(id())
  if (!row) return
  entitle(section.querySelector('.list-title'), row.title, {
    save: (title, etag) => pending.update('lists', id(), { title }, {}, etag),
    stored: () => stored('lists', id()),
    gone: title => toast(`“${row.title}” had been removed meanwhile.`, { tone: 'trouble', detail: `It was to be called “${title}”.` }),
    remove: lists.cardsIn(row.id).length ? undefined : () => attempt(`“${row.title}” was not removed`, pending.delete('lists', id())),
    closed: draw,
  })
}

/* ---- keys ---------------------------------------------------------------------------------- */

/** The card that Tab leads to: the last one that had the focus, or the first of all. */
let stop = null

function rove() {
  if (!stop?.isConnected || !stop.dataset.card) stop = root.querySelector('[data-card]')
  for (const item of root.querySelectorAll('[data-card]')) {
    const index = item === stop ? 0 : -1
    if (item.tabIndex === index) continue
    item.tabIndex = index
    for (const button of item.querySelectorAll('.face button')) button.tabIndex = index
  }
}

root.addEventListener('focusin', event => {
  const item = event.target.closest('[data-card]')
  if (!item) return
  stop = item
  rove()
})

/** The card that was lifted by the keyboard, and where it came from. */
let lifted = null

function lift(id) {
  lifted = id
  lists.item(id).dataset.lifted = ''
  announce(`${titleOf(id)} lifted. ${whereabouts(id)}. Arrows move it, Space drops it, Escape puts it back.`)
}

/** The lifted card is gone: there is nothing to drop. */
function letGo() {
  const id = lifted
  lifted = null
  pending.release('cards', id)
  announce('The lifted card was deleted.')
}

function drop(back) {
  const id = lifted
  const row = lists.cards.get(id)
  lifted = null
  delete lists.item(id)?.dataset.lifted
  const stored = views.cards.rows.get(String(id))
  if (!row) return
  if (back || !stored || (stored.list_id === row.list_id && stored.position === row.position)) {
    pending.release('cards', id)
    announce(back ? `${titleOf(id)} put back.` : `${titleOf(id)} dropped where it was.`)
  } else {
    change(id, { list_id: row.list_id, position: row.position }, 'moved')
    announce(`${titleOf(id)} dropped. ${whereabouts(id)}.`)
  }
}

function whereabouts(id, row = lists.cards.get(id)) {
  const cards = lists.cardsIn(row.list_id)
  return `${lists.lists.get(row.list_id)?.title}, ${cards.findIndex(card => card.id === id) + 1} of ${cards.length}`
}

/** The place that an arrow leads to, as a list and an index in it; undefined at the edge. */
function beyond(id, key) {
  const row = lists.cards.get(id)
  const columns = lists.inOrder().map(({ id }) => id)
  const column = columns.indexOf(row.list_id)
  const index = lists.cardsIn(row.list_id).findIndex(card => card.id === id)
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key]
  const list = columns[column + dx]
  if (list === undefined) return undefined
  const last = lists.cardsIn(list).length - (dx ? 0 : 1)
  const to = index + dy
  return to < 0 || (!dx && to > last) ? undefined : { list, index: Math.min(to, last) }
}

root.addEventListener('keydown', event => {
  const item = event.target.closest('[data-card]')
  if (!item || event.target !== item) return
  const id = idOf(item.dataset.card)
  if (event.key.startsWith('Arrow')) arrow(event, id)
  else if (event.key === ' ') lifted === id ? drop() : lift(id)
  else if (event.key === 'Enter') lifted === id ? drop() : edit(lists, id, editing)
  else if (event.key === 'Escape' && lifted === id) drop(true)
  else if (event.key === 'Delete' && lifted === null) remove(id)
  else return
  event.preventDefault()
})

function arrow(event, id) {
  const to = beyond(id, event.key)
  if (lifted !== id && !event.altKey && !event.ctrlKey) return step(id, event.key)
  if (!to) return announce('The edge of the board.')
  if (lifted === id) {
    const place = placeAt(id, to.list, to.index)
    if (!Number.isNaN(place.position)) pending.hold('cards', id, place)
    else move(id, to.list, to.index)
  } else move(id, to.list, to.index)
  drawNow()
  lists.item(id)?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
  announce(`${whereabouts(id)}.`)
}

/** Leads the focus to the next card; past an empty list to the one behind it. */
function step(id, key) {
  const row = lists.cards.get(id)
  const cards = lists.cardsIn(row.list_id)
  const index = cards.findIndex(card => card.id === id)
  let next = { ArrowUp: cards[index - 1], ArrowDown: cards[index + 1] }[key]
  const dx = { ArrowLeft: -1, ArrowRight: 1 }[key]
  if (dx) {
    const columns = lists.inOrder()
    for (let column = columns.findIndex(list => list.id === row.list_id) + dx; columns[column] && !next; column += dx) {
      const there = lists.cardsIn(columns[column].id)
      next = there[Math.min(index, there.length - 1)]
    }
  }
  const item = next && lists.item(next.id)
  item?.focus({ preventScroll: true })
  item?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
}

root.addEventListener('focusout', event => {
  // A lifted card that loses the focus to something else is dropped where it is.
  if (lifted !== null && event.relatedTarget && event.target === lists.item(lifted) && !event.relatedTarget.closest?.(`[data-card="${lifted}"]`)) drop()
})

/* ---- the wall ------------------------------------------------------------------------------ */

const wallToggle = document.getElementById('wall-toggle')
let awake = null

/** A screen for a room: larger, nothing to click, and it stays on. `#wall` in the URL opens it so. */
async function wall(on) {
  document.documentElement.toggleAttribute('data-wall', on)
  wallToggle.setAttribute('aria-pressed', on)
  document.dispatchEvent(new Event('wall'))
  history.replaceState(null, '', on ? '#wall' : location.pathname + location.search)
  if (on) stayAwake()
  else awake?.release()
}

const stayAwake = async () => (awake = await navigator.wakeLock?.request('screen').catch(() => null))
// The browser takes the lock back whenever the page is out of sight.
document.addEventListener('visibilitychange', () => !document.hidden && 'wall' in document.documentElement.dataset && stayAwake())

wallToggle.addEventListener('click', () => {
  const on = !('wall' in document.documentElement.dataset)
  wall(on)
  if (on) document.documentElement.requestFullscreen?.().catch(() => {})
  else if (document.fullscreenElement) document.exitFullscreen()
})
document.addEventListener('fullscreenchange', () => document.fullscreenElement || wall(false))
// Adding it to the URL of a board that is open loads nothing.
addEventListener('hashchange', () => wall(location.hash === '#wall'))
if (location.hash === '#wall') wall(true)
