/**
 * Writing in place: a card, a new card, the title of a list.
 *
 * While a card is open it is held: whatever others do to it, the text in the fields is the
 * writer's. Their change is told below the fields, and only what was really edited is sent.
 */

const editorTemplate = document.getElementById('editor-template')
const composerTemplate = document.getElementById('composer-template')
const titleTemplate = document.getElementById('title-template')

const clone = template => template.content.firstElementChild.cloneNode(true)
const grow = field => {
  field.style.height = 'auto'
  field.style.height = `${field.scrollHeight + 2}px`
}
const enter = event => event.key === 'Enter' && !event.isComposing && !event.shiftKey

/** The card that is open, at most one. */
let open = null

/**
 * Opens a card for writing.
 * @param {import('./lists.js').Lists} lists
 * @param {any} id
 * @param {{save: (id: any, fields: any, row: any) => void, remove: (id: any) => void, redraw: () => void}} act
 */
export function edit(lists, id, act) {
  if (open) finish(true)
  const item = lists.item(id)
  const row = lists.cards.get(id)
  const form = clone(editorTemplate)
  const { title, note } = form.elements
  const base = { title: row.title, note: row.note }
  title.value = base.title
  note.value = base.note
  open = { lists, item, form, base, row, act, signal: new AbortController() }
  const { signal } = open.signal
  lists.held.add(id)
  item.dataset.editing = ''
  item.append(form)
  grow(title)
  grow(note)
  title.focus()
  title.select()
  form.addEventListener('input', event => grow(event.target), { signal })
  form.addEventListener('submit', event => {
    event.preventDefault()
    finish(true, true)
  }, { signal })
  form.addEventListener('keydown', event => {
    event.stopPropagation()
    if (event.key === 'Escape' && !event.isComposing) finish(false, true)
    if (enter(event) && event.target === title || enter(event) && event.target === note && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      finish(true, true)
    }
  }, { signal })
  form.querySelector('.cancel').addEventListener('click', () => finish(false, true), { signal })
  form.querySelector('.remove').addEventListener('click', () => {
    const id = finish(false)
    act.remove(id)
  }, { signal })
  form.querySelector('.link').addEventListener('click', () => take(), { signal })
  // Looking elsewhere in the page ends the writing; looking at another window does not.
  document.addEventListener('pointerdown', event => item.contains(event.target) || finish(true), { signal, capture: true })
  item.addEventListener('focusout', event => event.relatedTarget && !item.contains(event.relatedTarget) && finish(true), { signal })
}

/** Tells the writer what others did to the open card meanwhile. */
export function meanwhile() {
  if (!open) return
  const { lists, item, form, base } = open
  const row = lists.cards.get(currentId())
  const line = form.querySelector('.meanwhile')
  const changed = row && ['title', 'note'].filter(name => row[name] !== base[name] && row[name] !== form.elements[name].value)
  line.hidden = row && !changed.length
  line.querySelector('button').hidden = !row
  if (!row) line.firstElementChild.textContent = 'Deleted meanwhile. Saving puts it back.'
  else if (changed.length) line.firstElementChild.textContent = `${row.changed_by} changed the ${changed.join(' and the ')}: “${changed.map(name => row[name]).join('” — “')}”`
  item.toggleAttribute('data-gone', !row)
}

function take() {
  const { lists, form, base } = open
  const row = lists.cards.get(currentId())
  for (const name of ['title', 'note']) {
    if (!row || row[name] === base[name]) continue
    form.elements[name].value = base[name] = row[name]
    grow(form.elements[name])
  }
  meanwhile()
  form.elements.title.focus()
}

const currentId = () => {
  const text = open.item.dataset.card
  return text.startsWith('new-') ? text : Number(text)
}

function finish(save, keepFocus) {
  const { lists, item, form, base, row, act, signal } = open
  const id = currentId()
  const fields = {}
  for (const name of ['title', 'note']) {
    const value = form.elements[name].value.trim()
    if (value !== base[name] && (value || name === 'note')) fields[name] = value
  }
  open = null
  signal.abort()
  lists.held.delete(id)
  form.remove()
  delete item.dataset.editing
  delete item.dataset.gone
  if (save && Object.keys(fields).length) act.save(id, fields, row)
  act.redraw()
  if (keepFocus) lists.item(id)?.focus({ preventScroll: true })
  return id
}

/** Opens the foot of a list for new cards; it stays open until it is told otherwise. */
export function compose(section, add) {
  const foot = section.querySelector('.list-foot')
  if (foot.querySelector('form')) return foot.querySelector('textarea').focus()
  const button = foot.querySelector('.add-card')
  const form = clone(composerTemplate)
  const field = form.elements.title
  const submit = () => {
    const title = field.value.trim()
    if (!title) return
    add(title)
    field.value = ''
    form.scrollIntoView({ block: 'nearest' })
  }
  const close = () => {
    form.remove()
    button.hidden = false
    button.focus({ preventScroll: true })
  }
  button.hidden = true
  foot.append(form)
  form.scrollIntoView({ block: 'nearest' })
  field.focus()
  form.addEventListener('submit', event => {
    event.preventDefault()
    submit()
    field.focus()
  })
  form.addEventListener('keydown', event => {
    event.stopPropagation()
    if (event.key === 'Escape' && !event.isComposing) close()
    if (enter(event) && event.target === field) {
      event.preventDefault()
      submit()
    }
  })
  form.querySelector('.cancel').addEventListener('click', () => {
    submit()
    close()
  })
  form.addEventListener('focusout', event => {
    if (event.relatedTarget && !form.contains(event.relatedTarget) && !field.value.trim()) {
      form.remove()
      button.hidden = false
    }
  })
}

/**
 * Writes one title in the place of a button.
 * @param {HTMLElement} button
 * @param {string} value
 * @param {(title: string) => void} save not called when nothing was changed
 * @param {() => void} [remove]
 */
export function entitle(button, value, save, remove) {
  const form = clone(titleTemplate)
  const field = form.elements.title
  let done = false
  const close = keep => {
    if (done) return
    done = true
    const title = field.value.trim()
    form.remove()
    button.hidden = false
    if (keep && title && title !== value) save(title)
    button.focus({ preventScroll: true })
  }
  field.value = value
  if (!value) field.placeholder = 'Title'
  button.hidden = true
  button.after(form)
  field.focus()
  field.select()
  const bin = form.querySelector('.remove')
  bin.hidden = !remove
  bin.addEventListener('click', () => {
    done = true
    form.remove()
    button.hidden = false
    remove()
  })
  form.addEventListener('submit', event => {
    event.preventDefault()
    close(true)
  })
  form.addEventListener('keydown', event => {
    event.stopPropagation()
    if (event.key === 'Escape' && !event.isComposing) close(false)
  })
  form.addEventListener('focusout', event => form.contains(event.relatedTarget) || !document.hasFocus() || close(true))
}
