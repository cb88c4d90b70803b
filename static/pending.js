/**
 * Writes that were made on this screen and that its streams have not shown yet.
 *
 * The board draws the rows of the database with these laid over them. A write is taken off again
 * only when the stream covers its transaction, or when it was refused: so nothing jumps back in
 * between, and what is shown always ends as what is stored. Knows neither the page nor what a
 * card is.
 */
import { RowcastError, write } from './rowcast.js'

export class Pending {
  /**
   * `fields` are sent; `guess` is only shown, until the database has filled it in. Each is of the
   * person who made it: nobody else sees it, and it is not sent in anybody else's name.
   * @type {{table: string, kind: 'insert' | 'update' | 'delete', id: any, fields: any, by: string | null, guess?: any, held?: boolean}[]}
   */
  #writes = []
  /** The last write of each row: the next one waits for it, so that they arrive in order. */
  #queues = new Map()
  #names = 0

  /**
   * @param {Record<string, import('./rowcast.js').View>} views by table
   * @param {{changed: () => void, renamed: (table: string, from: string, to: any) => void}} listener
   * @param {import('./rowcast.js').Token} token
   * @param {() => string | null} who sits here
   */
  constructor(views, listener, token, who) {
    this.views = views
    this.listener = listener
    this.token = token
    this.who = who
  }

  /** The rows of a table as this screen should show them. */
  rows(table) {
    const rows = new Map([...(this.views[table]?.rows.values() ?? [])].map(row => [row.id, row]))
    const who = this.who()
    for (const { table: of, by, kind, id, fields, guess, since } of this.#writes) {
      if (of !== table || by !== who) continue
      if (kind === 'delete') rows.delete(id)
      else if (kind === 'update') rows.has(id) && rows.set(id, { ...rows.get(id), ...fields, ...guess })
      else if (!rows.has(id)) {
        // The stream may show the new row before its writer has heard the id: it is not two rows.
        for (const row of rows.values()) if (unnamed(id) && row.id > since && same(row, fields)) rows.delete(row.id)
        rows.set(id, { id, ...fields, ...guess })
      }
    }
    return [...rows.values()]
  }

  /** Whether this screen is changing the row right now. */
  has(table, id) {
    return this.#writes.some(write => write.table === table && write.id === id)
  }

  /** Shows fields on this screen only, until `release` or the next `update` of the row. */
  hold(table, id, fields) {
    this.#unhold(table, id)
    this.#writes.push({ table, kind: 'update', id, fields, held: true, by: this.who() })
    this.listener.changed()
  }

  release(table, id) {
    this.#unhold(table, id)
    this.listener.changed()
  }

  #unhold(table, id) {
    this.#writes = this.#writes.filter(write => !(write.held && write.table === table && write.id === id))
  }

  /**
   * Adds a row; it has a name of this screen (`new-1`) until the database has given it its id. Sent
   * again with the same `once`, it is added once.
   */
  insert(table, fields, guess, once) {
    const id = fields.id ?? `new-${++this.#names}`
    const since = Math.max(0, ...[...(this.views[table]?.rows.values() ?? [])].map(row => row.id))
    return this.#queue({ table, kind: 'insert', id, fields, guess, since, once })
  }

  /** With `etag`, a row that is another version by then is left as it is: RowcastError, 412. */
  update(table, id, fields, guess, etag) {
    this.#unhold(table, id)
    return this.#queue({ table, kind: 'update', id, fields, guess, etag })
  }

  /** Deletes a row; `signature` is written just before, since a delete has no fields to carry it. */
  delete(table, id, signature) {
    return this.#queue({ table, kind: 'delete', id, fields: signature })
  }

  /** @returns {Promise<any>} the row as it was written; undefined when there was none any more */
  #queue(entry) {
    entry.by = this.who()
    this.#writes.push(entry)
    this.listener.changed()
    const before = this.#queues.get(place(entry))
    const done = (before ?? Promise.resolve()).then(() => this.#send(entry))
    const settled = done.then(() => {}, () => {})
    this.#queues.set(place(entry), settled)
    // By then it may have its id.
    settled.then(() => this.#queues.get(place(entry)) === settled && this.#queues.delete(place(entry)))
    return done
  }

  /** The token of whoever made a write; once somebody else sits here, there is none any more. */
  #tokenFor({ by }) {
    const check = () => {
      if (this.who() !== by) throw new RowcastError({ message: 'somebody else sits here now', sent: false })
    }
    return async refused => {
      check()
      const is = await this.token(refused)
      check()
      return is
    }
  }

  async #send(entry) {
    const { table, kind, fields, etag, once } = entry
    const token = this.#tokenFor(entry)
    try {
      const row = `/rest/v1/${table}?id=eq.${entry.id}`
      if (kind !== 'insert' && unnamed(entry.id)) throw new RowcastError({ message: 'it was never stored', sent: false })
      if (kind === 'delete' && fields) await write('PATCH', row, fields, { token })
      const { rows, txid } = await (kind === 'insert' ? write('POST', `/rest/v1/${table}`, fields, { token, once }) : kind === 'update' ? write('PATCH', row, fields, { token, etag }) : write('DELETE', row, undefined, { token }))
      if (kind === 'insert') this.#rename(entry, rows[0].id)
      // Not awaited by the caller: the answer is good, and the stream may be away for long.
      Promise.resolve(this.views[table]?.synced(txid)).catch(() => {}).then(() => this.#settle(entry))
      return rows[0]
    } catch (error) {
      this.#settle(entry)
      throw error
    }
  }

  #rename({ table, id: from }, to) {
    if (from === to) return
    const queue = this.#queues.get(place({ table, id: from }))
    for (const write of this.#writes) if (write.table === table && write.id === from) write.id = to
    this.#queues.set(place({ table, id: to }), queue)
    this.#queues.delete(place({ table, id: from }))
    this.listener.renamed(table, from, to)
    this.listener.changed()
  }

  #settle(entry) {
    this.#writes = this.#writes.filter(write => write !== entry)
    this.listener.changed()
  }
}

const place = ({ table, id }) => `${table} ${id}`
const unnamed = id => String(id).startsWith('new-')
const same = (row, fields) => Object.entries(fields).every(([name, value]) => row[name] === value)
