/**
 * How far this screen may be trusted, written where a room can read it, and the clock.
 *
 * The board is as fresh as its least fresh stream. `data-status` on <html>: connecting, live,
 * stale (behind for a moment), lost (behind for longer than anybody should wait for).
 */
import { hours } from './time.js'

const LOST = 30_000
const root = document.documentElement
const text = document.getElementById('status-text')
const clock = document.getElementById('clock')
const title = document.title

/** @param {import('./rowcast.js').View[]} streams those that the board cannot do without */
export function watchOver(streams) {
  const look = () => {
    clock.textContent = hours(new Date())
    const doubtful = streams.filter(({ status }) => status === 'stale' || status === 'closed')
    if (!doubtful.length) {
      const ready = streams.every(({ status }) => status === 'live')
      // A stream that opens for the first time takes nothing away from a board that is live.
      return ready ? show('live', 'Live') : show('connecting', 'Connecting')
    }
    const proofs = doubtful.map(({ since }) => since)
    const since = proofs.every(Boolean) ? new Date(Math.min(...proofs)) : null
    // Only an answer has a status: a refusal says more than that nothing is there.
    const refusal = doubtful.map(({ error }) => error).find(error => error?.status)?.message
    const words = (...parts) => parts.filter(Boolean).join(' · ')
    if (!since || doubtful.some(({ status }) => status === 'closed')) show('lost', refusal ?? 'No connection')
    else if (Date.now() - since > LOST) show('lost', words(`Lost since ${hours(since)}`, refusal))
    else show('stale', words(`Behind since ${hours(since)}`, refusal))
  }
  const show = (status, words) => {
    if (text.textContent === words && root.dataset.status === status) return
    root.dataset.status = status
    text.textContent = text.title = words
    document.title = status === 'live' || status === 'connecting' ? title : `${words} · ${title}`
  }
  for (const stream of streams) stream.on('status', look)
  setInterval(look, 1_000)
  look()
}
