/** Who is who: avatars, the menu to pick a person from, and who sits at this screen. */

const NOBODY = '#6b675f'
const KEPT = 'rowcast.board.me'
const menu = document.getElementById('menu')
const item = document.getElementById('menu-item-template')
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
export const me = () => localStorage.getItem(KEPT) || 'Somebody'

function showMe() {
  const name = localStorage.getItem(KEPT)
  portray(button.firstElementChild, name && named(name) ? name : null)
  if (!name) button.firstElementChild.textContent = '?'
  button.lastElementChild.textContent = name || 'Who are you?'
  button.setAttribute('aria-label', name ? `You are ${name}. Change` : 'Who are you?')
}

button.addEventListener('click', () => {
  const mine = localStorage.getItem(KEPT)
  pick(button, [...people.values()].find(({ name }) => name === mine)?.id, null, id => {
    localStorage.setItem(KEPT, people.get(id).name)
    showMe()
  })
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
  menu.replaceChildren(...choices.map(({ id, name }) => {
    const element = item.content.firstElementChild.cloneNode(true)
    portray(element.firstElementChild, id === null ? null : name)
    element.lastElementChild.textContent = name
    element.setAttribute('aria-checked', id === (current ?? null))
    element.dataset.person = id ?? ''
    element.addEventListener('click', () => {
      menu.hidePopover()
      anchor.focus({ preventScroll: true })
      chosen(id)
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
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
  if (!step) return
  event.preventDefault()
  const items = [...menu.children]
  items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus()
})
