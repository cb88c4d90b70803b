/** Points in time as people say them. Pure. */

const days = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' })
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit' })

/** The time of day, as 14:05. */
export const hours = date => clock.format(date)

/** How long ago, in two words; a clock that runs ahead of ours is `just now`. */
export function ago(text, now = Date.now()) {
  const then = new Date(text)
  const minutes = Math.floor((now - then) / 60_000)
  if (minutes < 1) return 'just now'
  if (minutes < 60) return `${minutes} min ago`
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ago`
  if (minutes < 48 * 60) return 'yesterday'
  if (minutes < 7 * 24 * 60) return `${Math.floor(minutes / 1440)} days ago`
  return days.format(then)
}

/** Fills a `<time>`; `refresh` keeps it true. */
export function tell(element, text) {
  const words = text ? ago(text) : ''
  element.dateTime = text ?? ''
  // Writing the same again has the browser lay it out anew.
  if (element.textContent !== words) element.textContent = words
}

/** Retells every filled `<time>` below an element. */
export function refresh(root) {
  for (const element of root.querySelectorAll('time[datetime]')) if (element.dateTime) tell(element, element.dateTime)
}
