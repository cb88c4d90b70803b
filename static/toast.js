/** What the board says: toasts for the eye, announcements for the ear. */

const LASTS = 7_000
const place = document.getElementById('toasts')
const voice = document.getElementById('voice')
const template = document.getElementById('toast-template')

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
  const close = () => {
    clearTimeout(timer)
    element.remove()
  }
  const start = () => (timer = setTimeout(close, tone ? 2 * LASTS : LASTS))
  if (action) {
    button.textContent = action
    button.hidden = false
    button.addEventListener('click', () => {
      close()
      act()
    })
  }
  // Nobody should have to race a clock to the button.
  for (const event of ['pointerenter', 'focusin']) element.addEventListener(event, () => clearTimeout(timer))
  for (const event of ['pointerleave', 'focusout']) element.addEventListener(event, start)
  while (place.children.length > 2) place.firstElementChild.remove()
  place.append(element)
  start()
}

/** A write that was refused, in the server's words. */
export function refused(what, error) {
  const told = [error.message, error.hint].filter(Boolean).join(' — ')
  const unreached = error.sent ? 'No answer came, so it is not known whether it was stored.' : 'The server cannot be reached. Nothing was changed.'
  toast(what, { tone: 'trouble', detail: error.status || error.sent === false ? told : unreached })
}

/** Says something to those who listen instead of look. */
export function announce(text) {
  voice.textContent = text
}
