/**
 * Writing in place: a card, a new card, the title of a list.
 *
 * While a card is open it is held: whatever others do to it, the text in the fields is the
 * writer's. Only what was really edited is sent, and only onto the version that it was edited
 * from: where somebody was faster with the same field, both texts are shown and the writer
 * decides. The text leaves the screen when it is stored, or when its writer drops it.
 */
import { portray } from './people.js'
import { isMember } from './session.js'
import { tell } from './time.js'
import { announce, refused, toast } from './toast.js'

const editorTemplate = document.getElementById('editor-template')
const theirsTemplate = document.getElementById('theirs-template')
const composerTemplate = document.getElementById('composer-template')
const titleTemplate = document.getElementById('title-template')
const FIELDS = ['title', 'note']
/** A version that no row has: the relay then tells how the row is. */
const NONE = 'none'
/** How often a write is tried anew because something else about the row has changed. */
const TRIES = 8

/**
 * Writes edits of a row onto the version that they were made from. Gives the `row` as it was
 * written, nothing when there is none any more, or `theirs` where somebody else has edited the same.
 * @param {Record<string, string>} edits
 * @param {Record<string, string>} base what was edited
 * @param {string} etag
 * @param {(edits: any, etag: string) => Promise<any>} save
 * @returns {Promise<{row?: any, theirs?: {row: any, etag: string}}>}
 */
async function guarded(edits, base, etag, save) {
  for (let tries = 0; ; tries++) {
    try {
      return { row: await save(edits, etag) }
    } catch (error) {
      if (error.status !== 412) throw error
      const { current } = error
      if (!current) return {}
      etag = error.etag
      const clashes = Object.keys(edits).some(name => current[name] !== base[name] && current[name] !== edits[name])
      if (clashes) return { theirs: { row: current, etag } }
      // It was moved, or another field of it was written: that is no quarrel.
      if (tries === TRIES) throw error
    }
  }
}

const clone = template => template.content.firstElementChild.cloneNode(true)
const grow = field => {
  field.style.height = 'auto'
  field.style.height = `${field.scrollHeight + 2}px`
}
/** A key that an input method takes for itself, to confirm or to drop what it converts. Safari tells of the one that confirms by its code alone. */
export const composes = event => event.isComposing || event.keyCode === 229
/** A text as its field gives it back: fields know one kind of line break, and what is around a text is not kept. */
const typed = text => text.replaceAll(/\r\n?/g, '\n').trim()
const enter = event => event.key === 'Enter' && !composes(event) && !event.shiftKey

/** What somebody else has written, to stand beside what is typed. Lists do not know who that was. */
function theirWords({ changed_by, changed_at }, text) {
  const element = clone(theirsTemplate)
  portray(element.querySelector('.avatar'), changed_by)
  if (changed_by !== undefined) {
    element.querySelector('.theirs-who').textContent = changed_by
    tell(element.querySelector('time'), changed_at)
  } else element.querySelector('.theirs-head').lastElementChild.textContent = 'Somebody wrote'
  element.querySelector('.theirs-text').textContent = text
  return element
}

/** Says at a field what is wrong with it. */
function complain(field, words) {
  field.setCustomValidity(words)
  field.reportValidity()
  field.addEventListener('input', () => field.setCustomValidity(''), { once: true })
}
/** Whoever goes elsewhere cannot be asked for one. */
const keeps = title => toast(`“${title}” keeps its title: there must be one.`)

/** Keeps a field to as many letters as the database takes; `maxlength` counts most emoji twice. */
document.addEventListener('beforeinput', ({ target: field, data }) => {
  if (!field.dataset?.letters) return
  const { value, selectionStart, selectionEnd } = field
  const rest = value.slice(0, selectionStart) + value.slice(selectionEnd)
  const room = Math.max(0, Number(field.dataset.letters) - [...rest].length)
  field.maxLength = rest.length + (data === null ? room : [...data].slice(0, room).join('').length)
}, { capture: true })

/** The cards that are open. One is written in; others wait for an answer, or for a decision. */
const editors = new Set()

/**
 * Opens a card for writing.
 * @param {import('./lists.js').Lists} lists
 * @param {any} id
 * @param {{
 *   save: (id: any, fields: any, etag?: string) => Promise<any>, restore: (row: any) => Promise<any>,
 *   remove: (id: any) => void, redraw: () => void, remind: (id: any) => void,
 *   stored: (id: any) => {row?: any, etag?: string},
 * }} act
 */
export function edit(lists, id, act) {
  for (const editor of editors) if (editor.id === id) return editor.focus()
  for (const editor of [...editors]) editor.leave()
  editors.add(new Editor(lists, id, act))
}

/** Tells the writers what others did to their cards meanwhile. */
export function meanwhile() {
  for (const editor of editors) editor.meanwhile()
}

class Editor {
  #stop = new AbortController()
  /** Save was asked for again while the answer was awaited. */
  #again = false
  /** The row as somebody else has left it, when both edited the same field. */
  #theirs = null

  constructor(lists, id, act) {
    this.lists = lists
    this.act = act
    this.item = lists.item(id)
    this.row = lists.cards.get(id)
    /** What the text was edited from, and the version of the row that this was. */
    this.base = { title: this.row.title, note: this.row.note }
    this.etag = this.#version(NONE)
    this.form = clone(editorTemplate)
    this.fields = FIELDS.map(name => this.form.elements[name])
    for (const field of this.fields) field.value = this.base[field.name]
    this.form.querySelector('.remind').hidden = !isMember()
    this.#say('writing')
    lists.held.add(id)
    this.item.dataset.editing = ''
    this.item.append(this.form)
    this.fields.forEach(grow)
    this.focus()
    this.fields[0].select()
    this.#listen()
  }

  /** The card's id now: one that was just made gets its own while it is open. */
  get id() {
    const text = this.item.dataset.card
    return text.startsWith('new-') ? text : Number(text)
  }

  /**
   * The version of the row that `base` describes. The database may have a newer one by now, which
   * this screen has not drawn yet: then it is `otherwise`.
   */
  #version(otherwise = this.etag) {
    const { row, etag } = this.act.stored(this.id)
    return row && FIELDS.every(name => row[name] === this.base[name]) ? etag ?? otherwise : otherwise
  }

  get state() {
    return this.form.dataset.state
  }

  #say(state) {
    this.form.dataset.state = state
  }

  focus() {
    this.fields[0].focus()
  }

  #listen() {
    const { signal } = this.#stop
    const { form, item } = this
    const on = (target, name, listener, options) => target.addEventListener(name, listener, { signal, ...options })
    const click = (name, act) => on(form.querySelector(name), 'click', act)
    on(form, 'input', event => grow(event.target))
    on(form, 'submit', event => {
      event.preventDefault()
      this.save(true)
    })
    on(form, 'keydown', event => {
      event.stopPropagation()
      if (event.key === 'Escape' && !composes(event)) this.state === 'conflict' ? this.#editOn() : this.close(true)
      const field = this.fields.indexOf(event.target)
      if (enter(event) && field >= 0 && (field === 0 || event.ctrlKey || event.metaKey)) {
        event.preventDefault()
        this.save(true)
      }
    })
    click('.cancel', () => this.close(true))
    click('.remove', () => {
      const { id } = this
      // The card has the focus, to leave it to the next one.
      this.close(true)
      this.act.remove(id)
    })
    click('.remind', () => this.act.remind(this.id))
    click('.meanwhile .link', () => this.#take(this.lists.cards.get(this.id)))
    click('.keep', () => {
      this.#editOn()
      this.save(true)
    })
    click('.take', () => {
      this.#take(this.#theirs)
      this.save(true)
    })
    click('.edit-on', () => this.#editOn())
    // Looking elsewhere in the page ends the writing; looking at another window does not.
    on(document, 'pointerdown', event => item.contains(event.target) || this.leave(), { capture: true })
    on(item, 'focusout', event => event.relatedTarget && !item.contains(event.relatedTarget) && this.leave())
  }

  /** What was edited. */
  #edits() {
    const edits = {}
    for (const { name, value } of this.fields) {
      const text = typed(value)
      if (text !== typed(this.base[name]) && (text || name === 'note')) edits[name] = text
    }
    return edits
  }

  /** The writer turns to something else. What is undecided stays on the screen until it is decided. */
  leave() {
    if (this.state === 'writing') this.save()
  }

  async save(keepFocus) {
    if (this.state === 'saving') return (this.#again = true)
    if (this.state === 'conflict') return
    const [title] = this.fields
    if (!typed(title.value) && typed(this.base.title)) {
      if (keepFocus) return complain(title, 'A card needs a title.')
      title.value = this.base.title
      keeps(title.value)
    }
    const edits = this.#edits()
    if (!Object.keys(edits).length) return this.close(keepFocus)
    this.#again = false
    this.#say('saving')
    try {
      const theirs = await this.#send(edits)
      if (theirs) return this.#clash(theirs)
    } catch (error) {
      this.#say('writing')
      return refused(`“${edits.title ?? this.base.title}” was not saved`, error)
    }
    Object.assign(this.base, edits)
    this.#say('writing')
    this.etag = this.#version()
    // Whoever wrote on while the answer was on its way goes on writing.
    if (!Object.keys(this.#edits()).length && typed(title.value)) this.close(keepFocus)
    else if (this.#again) this.save(keepFocus)
  }

  /** Writes the edits; gives the row back where somebody else has edited the same field. */
  async #send(edits) {
    if (!this.lists.cards.has(this.id)) return this.#putBack(edits)
    const { row, theirs } = await guarded(edits, this.base, this.etag, (edits, etag) => this.act.save(this.id, edits, etag))
    return theirs ?? (row ? null : this.#putBack(edits))
  }

  /** Makes the card anew that somebody has deleted. Until that is done, the text stays in the editor. */
  async #putBack(edits) {
    await this.act.restore({ ...this.row, ...this.base, ...edits })
    return null
  }

  #clash({ row, etag }) {
    this.etag = etag
    this.#theirs = row
    this.#say('conflict')
    this.#showTheirs()
    announce(`${row.changed_by} changed this card while you wrote. Your text is kept: keep it, take theirs, or edit on.`)
  }

  #showTheirs() {
    const row = this.#theirs
    for (const element of this.form.querySelectorAll('.theirs')) element.remove()
    for (const field of this.fields) {
      if (row[field.name] === field.value.trim() || row[field.name] === this.base[field.name]) continue
      const element = theirWords(row, row[field.name] || '(nothing)')
      element.dataset.field = field.name
      field.after(element)
    }
    this.form.querySelector('.meanwhile').hidden = true
    this.item.scrollIntoView({ block: 'nearest', inline: 'nearest' })
  }

  /** From here on the text stands against theirs, which stays beside it. */
  #editOn() {
    for (const name of FIELDS) this.base[name] = this.#theirs[name]
    this.#theirs = null
    this.#say('writing')
    this.focus()
  }

  /** Theirs in place of what both have edited; what they left alone stays as it was typed. */
  #take(row) {
    for (const field of this.fields) {
      const { name } = field
      if (row[name] !== this.base[name]) field.value = row[name]
      this.base[name] = row[name]
      grow(field)
    }
    for (const element of this.form.querySelectorAll('.theirs')) element.remove()
    this.#theirs = null
    this.#say('writing')
    this.meanwhile()
    this.focus()
  }

  meanwhile() {
    const { lists, item, form, base, id } = this
    const row = lists.cards.get(id)
    const line = form.querySelector('.meanwhile')
    item.toggleAttribute('data-gone', !row)
    if (this.state === 'conflict') {
      const stored = this.act.stored(id)
      if (stored.row && Date.parse(stored.row.changed_at) > Date.parse(this.#theirs.changed_at)) this.#clash(stored)
      return
    }
    if (this.state === 'saving') return
    const changed = row && FIELDS.filter(name => row[name] !== base[name])
    // What was edited is still what it was edited from.
    this.etag = this.#version()
    const other = changed?.filter(name => row[name] !== form.elements[name].value)
    line.hidden = row && !other.length
    line.querySelector('button').hidden = !row
    if (!row) line.firstElementChild.textContent = 'Deleted meanwhile. Saving puts it back.'
    else if (other.length) line.firstElementChild.textContent = `${row.changed_by} changed the ${other.join(' and the ')}: “${other.map(name => row[name]).join('” — “')}”`
  }

  close(keepFocus) {
    const { lists, item, id } = this
    editors.delete(this)
    this.#stop.abort()
    lists.held.delete(id)
    this.form.remove()
    delete item.dataset.editing
    delete item.dataset.gone
    this.act.redraw()
    if (keepFocus) lists.item(id)?.focus({ preventScroll: true })
  }
}

/**
 * Opens the foot of a list for new cards; it stays open until it is told otherwise. While it has
 * `data-typed`, its list stays, whatever becomes of that.
 * @param {HTMLElement} section
 * @param {(title: string, sent: object) => Promise<any>} add nothing when it was not added; `sent` is
 *   its own to keep what it needs to send the same again
 * @param {() => void} closed
 */
export function compose(section, add, closed) {
  const foot = section.querySelector('.list-foot')
  if (foot.querySelector('form')) return foot.querySelector('textarea').focus()
  const button = foot.querySelector('.add-card')
  const cards = section.querySelector('.cards')
  const form = clone(composerTemplate)
  const field = form.elements.title
  /** What was put back into the field, as it was sent. */
  let last = { title: '' }
  let sending = 0
  const mark = () => form.toggleAttribute('data-typed', sending > 0 || field.value.trim() !== '')
  const submit = async () => {
    const title = field.value.trim()
    if (!title) return
    const sent = title === last.title ? last : { title }
    field.value = ''
    last = { title: '' }
    form.scrollIntoView({ block: 'nearest' })
    sending++
    const adding = add(title, sent)
    // It is drawn with the next frame, at the end of a list that may be longer than the screen.
    requestAnimationFrame(() => cards.scrollTo(0, cards.scrollHeight))
    const added = await adding
    sending--
    // What was not added is there to be sent again, unless something else is written by then.
    if (!added && !field.value) {
      field.value = title
      last = sent
    }
    mark()
    const at = document.activeElement
    if (at === document.body || form.contains(at)) closed()
    else leave()
  }
  const shut = () => {
    form.remove()
    button.hidden = false
    closed()
  }
  /** Nobody writes here any more. What is on its way may come back to be sent again. */
  const leave = () => {
    if (form.isConnected && !field.value.trim() && !sending) shut()
  }
  const close = () => {
    shut()
    button.focus({ preventScroll: true })
  }
  button.hidden = true
  foot.append(form)
  form.scrollIntoView({ block: 'nearest' })
  field.focus()
  form.addEventListener('input', mark)
  form.addEventListener('submit', event => {
    event.preventDefault()
    submit()
    field.focus()
  })
  form.addEventListener('keydown', event => {
    event.stopPropagation()
    if (event.key === 'Escape' && !composes(event)) close()
    if (enter(event) && event.target === field) {
      event.preventDefault()
      submit()
    }
  })
  form.querySelector('.cancel').addEventListener('click', () => {
    submit()
    close()
  })
  form.addEventListener('focusout', event => event.relatedTarget && !form.contains(event.relatedTarget) && leave())
}

/** A title as its field gives it back: it has no line breaks. */
const line = text => text.replaceAll(/[\r\n]/g, '').trim()

/**
 * Writes one title in the place of a button, with the same care for what others write as a card.
 * @param {HTMLElement} button
 * @param {string} value
 * @param {{
 *   save: (title: string, etag?: string) => Promise<any> | void, called when something was changed:
 *     gives the row, or nothing when there is none any more
 *   stored: () => {row?: any, etag?: string},
 *   gone: (title: string) => void, remove: () => void, closed: () => void,
 * }} act a new title has `save` alone, and does not wait for it
 */
export function entitle(button, value, { save, stored, gone, remove, closed }) {
  const form = clone(titleTemplate)
  const field = form.elements.title
  const conflict = editorTemplate.content.querySelector('.conflict').cloneNode(true)
  /** What the text stands against, and the version of the row that this was. */
  let base = value
  let etag
  let theirs
  let done = false
  const know = (title, version) => {
    const { row, etag: latest } = stored?.() ?? {}
    base = title
    etag = version ?? (row?.title === title ? latest : undefined) ?? NONE
  }
  const say = state => (form.dataset.state = state)
  const mark = () => form.toggleAttribute('data-typed', line(field.value) !== line(base))
  const shut = keepFocus => {
    done = true
    form.remove()
    button.hidden = false
    if (keepFocus) button.focus({ preventScroll: true })
    closed?.()
  }
  const submit = async keepFocus => {
    if (done || form.dataset.state !== 'writing') return
    const title = line(field.value)
    if (!title && line(base)) {
      if (keepFocus) return complain(field, 'A list needs a title.')
      keeps(base)
    }
    if (!title || title === line(base)) return shut(keepFocus)
    if (!stored) {
      save(title)
      return shut(keepFocus)
    }
    say('saving')
    try {
      const written = await guarded({ title }, { title: base }, etag, ({ title }, etag) => save(title, etag))
      if (done) return
      say('writing')
      if (written.theirs) return clash(written.theirs)
      if (!written.row) gone(title)
    } catch (error) {
      say('writing')
      return refused(`“${base}” was not renamed`, error)
    }
    know(title)
    mark()
    // Whoever wrote on while the answer was on its way goes on writing.
    if (line(field.value) === title) shut(keepFocus)
    else if (!form.contains(document.activeElement)) submit()
  }
  const clash = ({ row, etag }) => {
    theirs = { title: row.title, etag }
    say('conflict')
    form.querySelector('.theirs')?.remove()
    conflict.before(theirWords(row, row.title))
    form.scrollIntoView({ block: 'nearest', inline: 'nearest' })
    announce('Somebody changed this title while you wrote. Your text is kept: keep it, take theirs, or edit on.')
  }
  const editOn = () => {
    know(theirs.title, theirs.etag)
    say('writing')
    field.focus()
  }
  say('writing')
  form.append(conflict)
  field.value = value
  know(value)
  if (!value) field.placeholder = 'Title'
  button.hidden = true
  button.after(form)
  field.focus()
  field.select()
  form.addEventListener('input', mark)
  const bin = form.querySelector('.remove')
  bin.hidden = !remove
  bin.addEventListener('click', () => {
    shut(true)
    remove()
  })
  form.querySelector('.keep').addEventListener('click', () => {
    editOn()
    submit(true)
  })
  form.querySelector('.take').addEventListener('click', () => shut(true))
  form.querySelector('.edit-on').addEventListener('click', editOn)
  form.addEventListener('submit', event => {
    event.preventDefault()
    submit(true)
  })
  form.addEventListener('keydown', event => {
    event.stopPropagation()
    if (event.key === 'Escape' && !composes(event)) form.dataset.state === 'conflict' ? editOn() : shut(true)
  })
  // Whoever goes elsewhere is not called back. What is undecided stays until it is decided.
  form.addEventListener('focusout', event => form.contains(event.relatedTarget) || !document.hasFocus() || submit())
}
