/**
 * Who sits at this screen: asks for a name once, signs in with it, and keeps the token good.
 *
 * The name is remembered and shared by all windows of the browser; the token is never written
 * down. On a relay that signs nobody in, everybody is a visitor, and the name is only a signature.
 */
import { keep, kept } from './kept.js'
import { RowcastError } from './rowcast.js'

const KEPT = 'rowcast.board.me'
/** A token is renewed when this part of its life is left. */
const MARGIN = 0.2
const dialog = document.getElementById('sign-in')
const form = dialog.querySelector('form')
const field = form.elements.name
const trouble = dialog.querySelector('.trouble')
const listeners = new Set()

/** The name as the database has it, from the last sign-in. */
let known = null
let token = null
/** When the token should be replaced, in ms. */
let stale = 0
let asking = null
/** Whether the relay signs people in at all. */
let offered = true

/** Who sits here, as the database writes the name; null for somebody without one. */
export const name = () => known ?? (kept(KEPT) || null)

/** Whether whoever sits here is signed in. */
export const isMember = () => known !== null

/** Calls back when somebody else sits here. */
export const onChange = listener => listeners.add(listener)

/**
 * A token that is still good, for rowcast.js; null for a visitor.
 * @param {string} [refused] one that the relay does not take
 */
export async function bearer(refused) {
  if (!name() || !offered) return null
  if (token && token !== refused && Date.now() < stale) return token
  await (asking ??= signIn(name()).finally(() => (asking = null)))
  // Nothing, when somebody else took the chair meanwhile: now it is his turn.
  return token ?? bearer()
}

async function signIn(as) {
  const answer = await fetch('/demo/sign-in', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ name: as }) }).catch(() => {
    throw new RowcastError({})
  })
  // Somebody else took the chair while the answer was on its way.
  if (as !== name()) return
  token = null
  offered = answer.status !== 404
  if (!offered) return
  const told = await answer.json().catch(() => ({}))
  // A page in the way, as that of a hotel's network, answers with a success and no token: asked at once, it would be asked for ever.
  if (!answer.ok || !told.token) throw new RowcastError({ message: 'the sign-in gave no token', ...told, status: answer.status })
  const first = known !== told.name
  token = told.token
  known = told.name
  // A token counts whole seconds, so its last one may be short.
  stale = Date.now() + (told.expires_in * (1 - MARGIN) - 1) * 1000
  if (first) tell()
}

function tell() {
  for (const listener of listeners) listener()
}

function become(next) {
  token = known = null
  keep(KEPT, next)
}

/** Another window of this browser changed hands, and this one with it. */
addEventListener('storage', ({ key, newValue, oldValue }) => {
  if (key !== KEPT || newValue === oldValue) return
  token = known = null
  tell()
})

export function signOut() {
  become('')
  tell()
}

/** Asks for a name; `choices` are names that are known, drawn by the caller. */
export function ask(choices) {
  const place = dialog.querySelector('.choices')
  place.replaceChildren(...choices)
  place.hidden = !choices.length
  field.value = name() ?? ''
  trouble.hidden = true
  dialog.showModal()
  field.select()
}

/** Asks whoever opens the board for the first time; a wall is asked nothing. */
export function askOnce(choices) {
  if (kept(KEPT) === null && !dialog.open && !('wall' in document.documentElement.dataset)) ask(choices)
}

/** Takes a name from the dialog, by hand or by a choice. */
export async function enter(as) {
  const wanted = as.trim()
  if (!wanted) return field.focus()
  const before = kept(KEPT) ?? ''
  become(wanted)
  try {
    await bearer()
    dialog.close()
  } catch (error) {
    become(before)
    trouble.textContent = error.status ? error.message : 'The server cannot be reached.'
    trouble.hidden = false
    field.focus()
  }
  tell()
}

form.addEventListener('submit', event => {
  event.preventDefault()
  enter(field.value)
})
dialog.querySelector('.cancel').addEventListener('click', () => dialog.close())
// Having looked away from the question is an answer, too.
dialog.addEventListener('close', () => kept(KEPT) === null && keep(KEPT, ''))
