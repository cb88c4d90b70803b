/**
 * Reminders: a list that its person alone sees, in all of his windows.
 *
 * Row-level security decides who gets what; this page asks for the whole table and draws what
 * comes. Keys of such a view are opaque, so a row is known by its `id`.
 */
import { composes } from './editor.js'
import { keep, kept } from './kept.js'
import { idOf } from './lists.js'
import { unique, view } from './rowcast.js'
import { bearer, isMember, name, onChange } from './session.js'
import { refused } from './toast.js'

const KEPT = 'rowcast.board.reminders'
const panel = document.getElementById('reminders')
const list = document.getElementById('reminder-list')
const form = document.getElementById('reminder-form')
const toggle = document.getElementById('reminders-toggle')
const shut = document.getElementById('reminders-close')
const count = document.getElementById('reminders-count')
const template = document.getElementById('reminder-template')

/**
 * @param {Record<string, import('./rowcast.js').View>} views gets and loses `reminders`
 * @param {import('./pending.js').Pending} pending
 * @param {(card: any) => void} show leads to a card
 * @returns {{draw: () => void, add: (text: string, card?: number) => Promise<any>}}
 */
export function remember(views, pending, show) {
  const drawn = new Map()
  let whose = null

  /** The stream is one person's: another one gets another stream, and never sees these rows. */
  function sit() {
    const who = isMember() ? name() : null
    if (who === whose) return
    whose = who
    form.reset()
    views.reminders?.close()
    delete views.reminders
    toggle.hidden = !who
    if (who) {
      views.reminders = view('/rest/v1/reminders', { key: 'id', token: bearer })
      views.reminders.subscribe(draw)
    }
    // On a narrow screen the panel covers the board: there it waits to be asked for.
    open(who && matchMedia('(min-width: 75rem)').matches && kept(KEPT) === 'open')
    draw()
  }

  function draw() {
    const rows = whose ? pending.rows('reminders').sort((a, b) => a.done - b.done || (a.id > b.id ? 1 : -1)) : []
    const wanted = new Set(rows.map(({ id }) => id))
    for (const [id, element] of drawn) {
      if (wanted.has(id)) continue
      // The focus goes to the next one. On a phone a field would call up the keyboard.
      if (element.contains(document.activeElement)) ((element.nextElementSibling ?? element.previousElementSibling)?.querySelector('.reminder-drop') ?? shut).focus()
      element.remove()
      drawn.delete(id)
    }
    rows.forEach((row, at) => {
      const element = drawn.get(row.id) ?? make(row.id)
      fill(element, row)
      if (list.children[at] !== element) list.insertBefore(element, list.children[at] ?? null)
    })
    const left = rows.filter(({ done }) => !done).length
    count.textContent = left
    count.hidden = !left
    toggle.setAttribute('aria-label', left ? `Reminders, ${left} to do` : 'Reminders')
  }

  function make(id) {
    const element = template.content.firstElementChild.cloneNode(true)
    const box = element.querySelector('input')
    const here = () => idOf(element.dataset.reminder)
    drawn.set(id, element)
    box.addEventListener('change', () => attempt('The reminder was not changed', pending.update('reminders', here(), { done: box.checked })))
    element.querySelector('.reminder-drop').addEventListener('click', () => attempt('The reminder was not dropped', pending.delete('reminders', here())))
    element.querySelector('.reminder-card').addEventListener('click', () => show(Number(element.dataset.of)))
    return element
  }

  function fill(element, { id, text, done, card_id }) {
    element.dataset.reminder = id
    element.dataset.of = card_id ?? ''
    element.toggleAttribute('data-done', done)
    element.querySelector('input').checked = done
    const words = element.querySelector('.reminder-text')
    if (words.textContent !== text) words.textContent = text
    element.querySelector('.reminder-card').hidden = card_id === null
  }

  const attempt = (what, doing) => doing.catch(error => refused(what, error))
  const add = (text, card = null, once = unique()) => {
    choose(true)
    return attempt('The reminder was not kept', pending.insert('reminders', { text, card_id: card }, { done: false }, once))
  }

  function open(shown) {
    panel.hidden = !shown
    toggle.setAttribute('aria-expanded', Boolean(shown))
  }

  const choose = shown => {
    keep(KEPT, shown ? 'open' : 'closed')
    open(shown)
  }
  toggle.addEventListener('click', () => choose(panel.hidden))
  const close = () => {
    choose(false)
    toggle.focus()
  }
  shut.addEventListener('click', close)
  panel.addEventListener('keydown', event => event.key === 'Escape' && !composes(event) && close())
  /** What was put back into the field, under the name by which it is kept once. */
  let last = { text: '' }
  form.addEventListener('submit', async event => {
    event.preventDefault()
    const field = form.elements.text
    const text = field.value.trim()
    const by = whose
    if (!text) return
    const sent = text === last.text ? last : { text, once: unique() }
    field.value = ''
    last = { text: '' }
    // What was not kept is there to be sent again, unless something else is written by then, or
    // somebody else sits here.
    if (await add(text, null, sent.once) || field.value || whose !== by) return
    field.value = text
    last = sent
  })
  onChange(sit)
  sit()
  return { draw, add }
}
