/**
 * Moving cards by hand: a mouse drags at once, a finger after a long press (before that it
 * scrolls). The card itself stays in its list, unseen and held, until it is dropped; a likeness
 * follows the hand and a placeholder shows where it would land.
 */
import { idOf, likeness } from './lists.js'

const SLACK = 6
const PRESS = 320
const EDGE = 56
const calm = matchMedia('(prefers-reduced-motion: reduce)')

/**
 * @param {import('./lists.js').Lists} lists
 * @param {{drop: (id: any, list: any, index: number) => void, redraw: () => void}} act
 */
export function draggable(lists, act) {
  let hand = null

  lists.root.addEventListener('pointerdown', event => {
    const item = event.target.closest('[data-card]')
    if (hand || !item || event.button || event.target.closest('button, form') || 'editing' in item.dataset) return
    const touch = event.pointerType === 'touch'
    const stop = new AbortController()
    const { signal } = stop
    hand = { item, id: idOf(item.dataset.card), pointer: event.pointerId, touch, x: event.clientX, y: event.clientY, from: [event.clientX, event.clientY], stop }
    if (touch) hand.press = setTimeout(lift, PRESS)
    addEventListener('pointermove', move, { signal })
    addEventListener('pointerup', event => event.pointerId === hand?.pointer && end(true), { signal })
    addEventListener('pointercancel', event => event.pointerId === hand?.pointer && end(false), { signal })
    addEventListener('keydown', event => {
      if (event.key !== 'Escape' || !hand.copy) return
      event.stopPropagation()
      end(false)
    }, { signal, capture: true })
    // Only a listener that is not passive may keep a finger that holds a card from scrolling.
    addEventListener('touchmove', event => hand?.copy && event.preventDefault(), { signal, passive: false })
    addEventListener('contextmenu', event => touch && event.preventDefault(), { signal })
  })

  function move(event) {
    if (event.pointerId !== hand?.pointer) return
    hand.x = event.clientX
    hand.y = event.clientY
    if (hand.copy) return
    if (Math.hypot(hand.x - hand.from[0], hand.y - hand.from[1]) < SLACK) return
    if (hand.touch) end(false)
    else lift()
  }

  function lift() {
    const { item, id } = hand
    if (!item.isConnected) return end(false)
    getSelection()?.removeAllRanges()
    const rect = item.getBoundingClientRect()
    hand.rect = rect
    hand.copy = likeness(item, rect)
    hand.copy.dataset.inhand = ''
    hand.gap = document.createElement('li')
    hand.gap.dataset.placeholder = ''
    hand.gap.style.height = `${rect.height}px`
    lists.held.add(id)
    item.dataset.dragged = ''
    item.before(hand.gap)
    document.documentElement.dataset.dragging = ''
    navigator.vibrate?.(12)
    hand.frame = requestAnimationFrame(follow)
  }

  function follow() {
    if (!hand?.copy) return
    if (!lists.cards.has(hand.id)) return end(false)
    const { copy, x, y, from, rect } = hand
    copy.style.transform = `translate(${x - from[0]}px, ${y - from[1]}px)${calm.matches ? '' : ' rotate(1.6deg)'}`
    scroll()
    const section = sectionAt(x)
    if (section) {
      const place = section.querySelector('.cards')
      const middle = y - from[1] + rect.top + rect.height / 2
      const others = [...place.querySelectorAll('.card:not([data-dragged])')]
      const next = others.find(other => {
        const box = other.getBoundingClientRect()
        return middle < box.top + box.height / 2
      }) ?? null
      const here = hand.gap.parentElement === place && neighbour(hand.gap) === next
      if (!here) {
        lists.glide(() => place.insertBefore(hand.gap, next))
        act.redraw()
      }
    }
    hand.frame = requestAnimationFrame(follow)
  }

  function neighbour(gap) {
    let next = gap.nextElementSibling
    while (next && 'dragged' in next.dataset) next = next.nextElementSibling
    return next
  }

  function sectionAt(x) {
    let best = null
    let least = Infinity
    for (const section of lists.root.querySelectorAll('.list')) {
      const { left, right } = section.getBoundingClientRect()
      const away = x < left ? left - x : x > right ? x - right : 0
      if (away < least) [best, least] = [section, away]
    }
    return best
  }

  function scroll() {
    const { x, y } = hand
    const board = lists.root.getBoundingClientRect()
    if (x < board.left + EDGE) lists.root.scrollLeft -= 10
    if (x > board.right - EDGE) lists.root.scrollLeft += 10
    const place = hand.gap.parentElement
    const box = place.getBoundingClientRect()
    if (y < box.top + EDGE / 2) place.scrollTop -= 8
    if (y > box.bottom - EDGE / 2) place.scrollTop += 8
  }

  function end(drop) {
    const { item, id, press, frame, copy, gap, rect, stop } = hand
    hand = null
    clearTimeout(press)
    cancelAnimationFrame(frame)
    stop.abort()
    if (!copy) return
    delete document.documentElement.dataset.dragging
    // The click that ends a drag is not a click.
    addEventListener('click', event => event.stopPropagation(), { capture: true, once: true, signal: AbortSignal.timeout(50) })
    const section = gap.closest('[data-list]')
    const known = lists.cards.has(id)
    const cards = [...gap.parentElement.querySelectorAll('.card:not([data-dragged]), [data-placeholder]')]
    const index = cards.indexOf(gap)
    const settle = () => {
      copy.remove()
      gap.remove()
      delete item.dataset.dragged
      delete item.dataset.flying
    }
    lists.held.delete(id)
    if (drop && known && section) {
      item.dataset.flying = ''
      gap.before(item)
      delete item.dataset.dragged
      gap.remove()
      act.drop(id, idOf(section.dataset.list), index)
      item.focus({ preventScroll: true })
      const now = calm.matches ? null : item.getBoundingClientRect()
      if (!now?.width) return settle()
      copy.animate([{}, { transform: `translate(${now.left - rect.left}px, ${now.top - rect.top}px)` }], { duration: 160, easing: 'ease-out', fill: 'forwards' }).finished.catch(() => {}).then(settle)
    } else {
      settle()
      act.redraw()
    }
  }
}
