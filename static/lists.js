/**
 * Draws the lists and their cards, and moves what moved.
 *
 * Elements are kept by id and only touched where they differ, so focus, scrolling and half-typed
 * text survive a change from elsewhere. A card in `held` (somebody writes in it or drags it) stays
 * exactly where it is until it is let go. Knows nothing of writes.
 */
import { colourOf, person, portray } from './people.js'
import { tell } from './time.js'

const GLOW = 2_800
const MOVE = { duration: 280, easing: 'cubic-bezier(.2, .8, .2, 1)' }
const calm = matchMedia('(prefers-reduced-motion: reduce)')
const listTemplate = document.getElementById('list-template')
const cardTemplate = document.getElementById('card-template')
const flights = document.getElementById('flights')

const byPosition = (a, b) => a.position - b.position || (a.id > b.id ? 1 : -1)

export class Lists {
  /** Ids of cards that must not be moved, redrawn or removed. */
  held = new Set()
  /** Rows as drawn, by id. */
  lists = new Map()
  cards = new Map()
  #sections = new Map()
  #items = new Map()
  #glows = new Map()
  /** What each card shows: its row, and whom that is given to. @type {WeakMap<Element, [any, any]>} */
  #shown = new WeakMap()
  #shape = ''

  /** @param {Element} root @param {Element} end what stays behind the last list */
  constructor(root, end) {
    this.root = root
    this.end = end
  }

  section = id => this.#sections.get(id)
  item = id => this.#items.get(id)
  inOrder = () => [...this.lists.values()].sort(byPosition)
  cardsIn = list => [...this.cards.values()].filter(card => card.list_id === list).sort(byPosition)

  /** Draws a state: rows of lists and rows of cards. */
  draw(lists, cards) {
    const focused = document.activeElement
    const neighbours = this.root.contains(focused) ? this.#neighbours(focused) : []
    this.lists = new Map(lists.map(row => [row.id, row]))
    this.cards = new Map(cards.map(row => [row.id, row]))
    const order = this.inOrder().map(list => [list.id, this.cardsIn(list.id).map(({ id }) => id)])
    const kept = [...this.#sections].filter(([id, section]) => !this.lists.has(id) && isWritten(section)).map(([id]) => id)
    const shape = JSON.stringify([order, [...this.held], kept])
    const change = () => this.#arrange(order)
    if (shape !== this.#shape) this.#shape ? this.glide(change) : change()
    this.#shape = shape
    for (const row of lists) this.#fillList(row)
    for (const row of cards) this.#fillCard(row)
    // Moving an element takes the focus from it.
    if (focused !== document.activeElement) [focused, ...neighbours].find(element => element.isConnected)?.focus({ preventScroll: true })
  }

  /** A row that was `new-1` has its own id now. */
  rename(table, from, to) {
    const elements = table === 'cards' ? this.#items : this.#sections
    const element = elements.get(from)
    if (!element) return
    elements.get(to)?.remove()
    elements.delete(from)
    elements.set(to, element)
    element.dataset[table === 'cards' ? 'card' : 'list'] = to
    if (this.held.delete(from)) this.held.add(to)
  }

  /** Where the focus goes when what has it is gone: a card leaves it to the next one, the last to its list, a list to its neighbour. */
  #neighbours(focused) {
    const item = focused?.closest?.('[data-card]')
    const section = focused?.closest?.('.list')
    const card = item?.nextElementSibling ?? item?.previousElementSibling
    const list = section && [after(section), section.previousElementSibling].find(other => other?.classList.contains('list'))
    return [card, section?.querySelector('.add-card'), list?.querySelector('.list-title'), this.end.querySelector('button')].filter(Boolean)
  }

  #arrange(order) {
    const seen = new Set()
    let at = this.root.querySelector('.list')
    for (const [id, cards] of order) {
      const section = this.#sections.get(id) ?? this.#newList(id)
      if (section === at) at = after(at)
      else this.root.insertBefore(section, at ?? this.end)
      const place = section.querySelector('.cards')
      let next = this.#unheld(place.firstElementChild)
      for (const card of cards) {
        seen.add(card)
        const item = this.#items.get(card) ?? this.#newCard(card)
        if (this.held.has(card) && item.isConnected) continue
        if (item === next) next = this.#unheld(item.nextElementSibling)
        else place.insertBefore(item, next)
      }
    }
    for (const [id, item] of this.#items) {
      if (seen.has(id) || this.held.has(id)) continue
      item.remove()
      this.#items.delete(id)
    }
    for (const [id, section] of this.#sections) {
      if (this.lists.has(id)) continue
      section.querySelector('.removed').hidden = false
      if (isWritten(section)) continue
      section.remove()
      this.#sections.delete(id)
    }
  }

  #unheld(item) {
    while (item && (item.dataset.placeholder !== undefined || this.held.has(idOf(item.dataset.card)))) item = item.nextElementSibling
    return item
  }

  #newList(id) {
    const section = listTemplate.content.firstElementChild.cloneNode(true)
    const title = section.querySelector('.list-title')
    section.dataset.list = id
    title.id = `list-${id}`
    section.setAttribute('aria-labelledby', title.id)
    this.#sections.set(id, section)
    return section
  }

  #newCard(id) {
    const item = cardTemplate.content.firstElementChild.cloneNode(true)
    item.dataset.card = id
    item.querySelector('.title').id = `title-${id}`
    item.setAttribute('aria-labelledby', `title-${id}`)
    this.#items.set(id, item)
    return item
  }

  #fillList({ id, title }) {
    const section = this.#sections.get(id)
    const count = section.querySelectorAll('.card:not([data-dragged])').length
    write(section.querySelector('.list-title'), title)
    write(section.querySelector('.count'), count || '')
    section.querySelector('.empty').hidden = count > 0
    section.querySelector('.removed').hidden = true
  }

  #fillCard(row) {
    const { id, title, note, assignee, changed_at, changed_by } = row
    const item = this.#items.get(id)
    const given = person(assignee)
    const [shown, to] = this.#shown.get(item) ?? []
    // A row is never changed, but replaced: among thousands, few are another than a frame ago.
    if (shown === row && to === given) return
    this.#shown.set(item, [row, given])
    write(item.querySelector('.title'), title)
    write(item.querySelector('.note'), note)
    item.querySelector('.note').hidden = !note
    write(item.querySelector('.by-name'), changed_by)
    tell(item.querySelector('time'), changed_at)
    portray(item.querySelector('.assignee .avatar'), given?.name)
    const button = item.querySelector('.assignee')
    button.setAttribute('aria-label', given ? `Given to ${given.name}. Change` : 'Give it to somebody')
    button.title = given?.name ?? 'Nobody yet'
    item.toggleAttribute('data-unsaved', String(id).startsWith('new-'))
  }

  /** Lets cards glow in the colours of those who changed them. @param {Map<any, string>} changes by the card's id */
  glow(changes) {
    const glows = [...changes].map(([id, by]) => ({ id, by, item: this.#items.get(id) })).filter(({ item }) => item)
    const again = glows.filter(({ item }) => 'glow' in item.dataset)
    for (const { item } of again) delete item.dataset.glow
    if (again.length) void this.root.offsetWidth // lets the animations start over, for the price of one layout
    for (const { id, by, item } of glows) {
      clearTimeout(this.#glows.get(id))
      item.style.setProperty('--glow', colourOf(by))
      item.dataset.glow = ''
      this.#glows.set(id, setTimeout(() => delete item.dataset.glow, GLOW))
    }
  }

  /** Makes a change to the arrangement of cards and lets the eye follow it. */
  glide(change) {
    if (calm.matches || document.hidden) return change()
    const before = new Map()
    for (const item of this.root.querySelectorAll('.card, [data-placeholder]')) {
      const rect = item.getBoundingClientRect()
      if (rect.width) before.set(item, { rect, parent: item.parentElement })
    }
    change()
    // Each is looked for before one is set in motion: in turns, all would be laid out anew for each.
    const places = [...before].map(([item, was]) => ({ item, ...was, now: item.isConnected && item.getBoundingClientRect() }))
    const fresh = [...this.root.querySelectorAll('.card')].filter(item => !before.has(item) && !('dragged' in item.dataset) && isInSight(item.getBoundingClientRect()))
    for (const { item, rect, parent, now } of places) {
      // A list may be far longer than the screen, and what nobody sees costs as much to move.
      if (!isInSight(rect) && !(now && isInSight(now))) continue
      if (!now) {
        if (!('placeholder' in item.dataset)) fade(item, rect)
        continue
      }
      const [x, y] = [rect.left - now.left, rect.top - now.top]
      if (!now.width || (Math.abs(x) < 1 && Math.abs(y) < 1)) continue
      if (item.parentElement === parent) item.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: 'none' }], MOVE)
      else if (!('placeholder' in item.dataset)) fly(item, rect, now)
    }
    for (const item of fresh) item.animate([{ opacity: 0, transform: 'translateY(8px)' }, {}], MOVE)
  }
}

/** Whether somebody writes in a list: in one of its cards, a new one or its title. It is kept until then. */
const isWritten = section => section.querySelector('[data-editing], [data-typed]') !== null

const isInSight = ({ top, right, bottom, left }) => bottom > 0 && right > 0 && top < innerHeight && left < innerWidth

/** The id in a data attribute, as it is in a row. */
export const idOf = text => (text?.startsWith('new-') ? text : Number(text))

/** A likeness of a card above everything, for a way that leads out of its list. */
export function likeness(item, { left, top, width, height }) {
  const copy = item.cloneNode(true)
  for (const element of [copy, ...copy.querySelectorAll('[id]')]) element.removeAttribute('id')
  for (const name of ['card', 'glow', 'flying', 'lifted', 'dragged']) delete copy.dataset[name]
  copy.removeAttribute('tabindex')
  Object.assign(copy.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` })
  flights.append(copy)
  return copy
}

/** Cards on their way to another list. @type {WeakMap<Element, Element>} */
const flying = new WeakMap()

function fly(item, from, to) {
  // One that is still on its way turns around where it is.
  const earlier = flying.get(item)
  if (earlier) from = earlier.getBoundingClientRect()
  earlier?.remove()
  const copy = likeness(item, to)
  flying.set(item, copy)
  item.dataset.flying = ''
  copy.animate([{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: 'none' }], { ...MOVE, duration: 420 }).finished.catch(() => {}).then(() => {
    copy.remove()
    if (flying.get(item) !== copy) return
    flying.delete(item)
    delete item.dataset.flying
  })
}

function fade(item, rect) {
  const copy = likeness(item, rect)
  copy.animate([{}, { opacity: 0, transform: 'scale(.96)' }], { ...MOVE, duration: 180 }).finished.catch(() => {}).then(() => copy.remove())
}

function after(section) {
  const next = section.nextElementSibling
  return next?.classList.contains('list') ? next : null
}

function write(element, text) {
  if (element.textContent !== String(text)) element.textContent = text
}
