/** What the board says: toasts for the eye, announcements for the ear. */

const LASTS = 7_000
const place = document.getElementById('toasts')
const voice = document.getElementById('voice')
const template = document.getElementById('toast-template')
/** Toasts that can be answered, each with what has its time begin anew. @type {Map<Element, () => void>} */
const clocks = new Map()

/**
 * @param {string} text
 * @param {{detail?: string, tone?: 'trouble', action?: string, act?: () => void}} [more]
 */
export function toast(text, { detail, tone, action, act } = {}) {
  const element = template.content.firstElementChild.cloneNode(true)
  const button = element.querySelector('button')
  const small = element.querySelector('small')
  element.querySelector('.toast-text').textContent = text
  if (detail) {
    small.textContent = detail
    small.hidden = false
  }
  if (tone) element.dataset.tone = tone
  let timer
  /** What keeps it: the pointer, the focus. */
  const under = new Set()
  const close = () => {
    clearTimeout(timer)
    clocks.delete(element)
    element.remove()
  }
  const start = () => {
    clearTimeout(timer)
    if (!under.size) timer = setTimeout(close, tone ? 2 * LASTS : LASTS)
  }
  if (action) {
    button.textContent = action
    button.hidden = false
    clocks.set(element, start)
    button.addEventListener('click', () => {
      close()
      act()
    })
  }
  // Nobody should have to race a clock to the button.
  for (const [begin, end] of [['pointerenter', 'pointerleave'], ['focusin', 'focusout']]) {
    element.addEventListener(begin, () => {
      under.add(begin)
      clearTimeout(timer)
    })
    element.addEventListener(end, () => {
      under.delete(begin)
      start()
    })
  }
  while (place.children.length > 2) {
    clocks.delete(place.firstElementChild)
    place.firstElementChild.remove()
  }
  place.append(element)
  start()
}

// A button that is many presses of Tab away is no way back: a key is, and no clock runs while keys are used.
document.addEventListener('keydown', event => {
  if (event.target.closest?.('input, textarea, dialog')) return
  for (const start of clocks.values()) start()
  // The letter by its code, which is that of Z on a Cyrillic keyboard, too.
  if (event.keyCode !== 90 || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return
  const last = [...clocks.keys()].at(-1)
  if (!last) return
  event.preventDefault()
  last.querySelector('button').click()
})

/** A write that was refused, in the server's words. */
export function refused(what, error) {
  const told = [error.message, error.hint].filter(Boolean).join(' — ')
  const unreached = error.sent ? 'No answer came, so it is not known whether it was stored.' : 'The server cannot be reached. Nothing was changed.'
  toast(what, { tone: 'trouble', detail: error.status || error.sent === false ? told : unreached })
}

/** Says something to those who listen instead of look. */
export function announce(text) {
  // The same text again is no news to a screen reader, unless it differs by what is not spoken.
  voice.textContent = voice.textContent === text ? `${text}\u00a0` : text
}
