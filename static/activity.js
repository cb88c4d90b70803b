/** The diary of the board: a panel at the side, and its last line as a ticker on a wall screen. */
import { keep, kept } from './kept.js'
import { portray } from './people.js'
import { refresh, tell } from './time.js'

const KEPT = 'rowcast.board.activity'
const SHOWN = 60
const panel = document.getElementById('activity')
const entries = document.getElementById('entries')
const ticker = document.getElementById('ticker')
const toggle = document.getElementById('activity-toggle')
const template = document.getElementById('entry-template')

/** @type {Map<number, Element>} */
const drawn = new Map()
let stop = null

/** @param {import('./rowcast.js').View} view of the table `activity` */
export function follow(view) {
  // The stream is open only while somebody looks: a browser has six connections for everything.
  const look = () => {
    const wanted = !panel.hidden || 'wall' in document.documentElement.dataset
    if (wanted && !stop) stop = view.subscribe(draw)
    if (!wanted && stop) stop = void stop()
  }
  const open = shown => {
    panel.hidden = !shown
    toggle.setAttribute('aria-expanded', shown)
    look()
  }
  const choose = shown => {
    keep(KEPT, shown ? 'open' : 'closed')
    open(shown)
    if (!shown) toggle.focus()
  }
  toggle.addEventListener('click', () => choose(panel.hidden))
  document.getElementById('activity-close').addEventListener('click', () => choose(false))
  panel.addEventListener('keydown', event => event.key === 'Escape' && choose(false))
  document.addEventListener('wall', look)
  const wide = matchMedia('(min-width: 75rem)').matches
  open(wide && kept(KEPT) !== 'closed')
}

/** Names may have become known, and time has passed. */
export function retell() {
  refresh(panel)
  for (const element of drawn.values()) portray(element.firstElementChild, element.dataset.who)
}

function draw(rows) {
  const latest = rows.sort((a, b) => b.id - a.id).slice(0, SHOWN)
  const wanted = new Set(latest.map(({ id }) => id))
  for (const [id, element] of drawn) {
    if (wanted.has(id)) continue
    element.remove()
    drawn.delete(id)
  }
  for (const row of [...latest].reverse()) {
    if (drawn.has(row.id)) continue
    const element = entry(row)
    drawn.set(row.id, element)
    const next = [...entries.children].find(other => Number(other.dataset.entry) < row.id)
    entries.insertBefore(element, next ?? null)
  }
  const [last] = latest
  ticker.replaceChildren()
  if (last) ticker.append(bold(last.who), ' ', ...phrase(last.what))
}

function entry({ id, who, what, via, at }) {
  const element = template.content.firstElementChild.cloneNode(true)
  element.dataset.entry = id
  element.dataset.who = who
  portray(element.querySelector('.avatar'), who)
  element.querySelector('.entry-who').textContent = who
  element.querySelector('.entry-what').append(...phrase(what))
  tell(element.querySelector('time'), at)
  element.querySelector('.entry-via').textContent = via && via !== who ? ` · ${via}` : ''
  return element
}

/** The sentence, with what stands between its quotation marks set apart. */
const phrase = what => what.split(/(“.*?”)/).map(part => (part.startsWith('“') ? bold(part.slice(1, -1)) : part))

function bold(text) {
  const element = document.createElement('b')
  element.textContent = text
  return element
}
