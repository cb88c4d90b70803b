/** Who is who: avatars, the menu to pick a person from, and who sits at this screen. */
import * as session from './session.js'

const NOBODY = '#6b675f'
const menu = document.getElementById('menu')
const item = document.getElementById('menu-item-template')
const choice = document.getElementById('choice-template')
const button = document.getElementById('me')

let people = new Map()

/** Takes the people of the database, as rows. */
export function know(rows) {
  people = new Map(rows.sort((a, b) => a.name.localeCompare(b.name)).map(person => [person.id, person]))
  showMe()
}

export const person = id => people.get(id)
const named = name => [...people.values()].find(person => person.name === name)

/** The colour of whoever has this name; programs have a grey of their own. */
export const colourOf = name => named(name)?.colour ?? NOBODY

/** Fills an avatar: initials on a colour for a person, a prompt sign for a program. */
export function portray(element, name) {
  const known = name && named(name)
  element.dataset.kind = known ? 'person' : name ? 'program' : 'nobody'
  element.textContent = known ? initials(name) : name ? '›_' : ''
  element.style.setProperty('--colour', known ? known.colour : '')
  element.style.setProperty('--on-colour', known ? readable(known.colour) : '')
}

const initials = name => name.split(/\s+/).slice(0, 2).map(word => [...word][0] ?? '').join('').toUpperCase()

/** Black or white, whichever can be read on the colour (WCAG relative luminance). */
function readable(colour) {
  const [r, g, b] = [1, 3, 5].map(at => {
    const part = parseInt(colour.slice(at, at + 2), 16) / 255
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
  })
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? '#16150f' : '#ffffff'
}

/** The name that signs this screen's writes. */
export const me = () => session.name() ?? 'Somebody'

function showMe() {
  const name = session.name()
  portray(button.firstElementChild, name && named(name) ? name : null)
  if (!name) button.firstElementChild.textContent = '?'
  button.lastElementChild.textContent = name ?? 'Sign in'
  button.setAttribute('aria-label', name ? `You are ${name}. Change` : 'Sign in')
  button.setAttribute('aria-haspopup', name ? 'menu' : 'dialog')
}
session.onChange(showMe)

/** Everybody's name as a button, for the dialog. */
const choices = () => [...people.values()].map(({ name }) => {
  const element = choice.content.firstElementChild.cloneNode(true)
  portray(element.firstElementChild, name)
  element.lastElementChild.textContent = name
  element.addEventListener('click', () => session.enter(name))
  return element
})

/** Asks a newcomer who he is. */
export const greet = () => session.askOnce(choices())

button.addEventListener('click', () => {
  if (!session.name()) return session.ask(choices())
  open(button, [['Change name…', () => session.ask(choices())], ['Sign out', session.signOut]].map(([text, act]) => ({ text, act })))
})

/**
 * Opens the menu of people at a button.
 * @param {HTMLElement} anchor
 * @param {number | null | undefined} current
 * @param {string | null} nobody what no person is called; null when it is no choice
 * @param {(id: number | null) => void} chosen
 */
export function pick(anchor, current, nobody, chosen) {
  const choices = [...people.values()].map(({ id, name }) => ({ id, name }))
  if (nobody) choices.push({ id: null, name: nobody })
  open(anchor, choices.map(({ id, name }) => ({ text: name, who: id === null ? null : name, id, checked: id === (current ?? null), act: () => chosen(id) })))
}

/** Shows a menu at a button: of people with their pictures, or of plain words. */
function open(anchor, entries) {
  menu.replaceChildren(...entries.map(({ text, who, id, checked, act }) => {
    const element = item.content.firstElementChild.cloneNode(true)
    if (who === undefined) {
      element.firstElementChild.remove()
      element.setAttribute('role', 'menuitem')
    } else {
      portray(element.firstElementChild, who)
      element.setAttribute('aria-checked', checked)
      element.dataset.person = id ?? ''
    }
    element.lastElementChild.textContent = text
    element.addEventListener('click', () => {
      menu.hidePopover()
      anchor.focus({ preventScroll: true })
      act()
    })
    return element
  }))
  menu.showPopover()
  const at = anchor.getBoundingClientRect()
  const { offsetWidth: width, offsetHeight: height } = menu
  menu.style.left = `${Math.max(8, Math.min(at.right - width, innerWidth - width - 8))}px`
  menu.style.top = `${at.bottom + height + 8 > innerHeight ? Math.max(8, at.top - height - 6) : at.bottom + 6}px`
  ;(menu.querySelector('[aria-checked=true]') ?? menu.firstElementChild)?.focus()
}

menu.addEventListener('keydown', event => {
  // Whoever goes on has chosen nothing; he goes on from the button.
  if (event.key === 'Tab') return menu.hidePopover()
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
  if (!step) return
  event.preventDefault()
  const items = [...menu.children]
  items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus()
})
