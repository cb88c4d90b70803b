/**
 * The client of Rowcast: live views of tables, and channels.
 *
 *     import { view } from '/rowcast.js'
 *     const tasks = view('/rest/v1/tasks?board_id=eq.7')
 *     const stop = tasks.subscribe(rows => render(rows))
 *
 * It promises that a page never sees half a snapshot or half a transaction, that it knows within
 * 12 seconds when it is no longer fresh, and that it comes back by itself. It does not know what
 * the rows mean, and it keeps nothing once the page is gone.
 *
 * A browser allows six HTTP/1.1 connections per host over all of its tabs, so the streams live in
 * a SharedWorker, which is this same file: one EventSource per URL, however many tabs look at it.
 * Where there is no SharedWorker, the page runs the same code itself.
 *
 * Who somebody is the page alone knows: `token` gives its token whenever one is needed, and each
 * connection is opened with a one-time ticket that the token buys. Streams are shared by those who
 * are the same person.
 *
 * Values are what JSON.parse makes of them: a bigint over 2^53 loses digits; its `key` does not.
 */

/** Silent for longer than this is stale: 12 s, less the second until our clock looks again. */
const SILENCE = 11_000
/** A connection attempt is given longer, so that a `retry:` of the relay is respected. */
const PATIENCE = 20_000
/** How long a lost connection may take to come back before the page says so. */
const GRACE = 3_000
/** How long a proxy that has refused a stream may take to say why. */
const ANSWER = 5_000
/** What a gateway says that has passed something on and has no answer to it. */
const UNANSWERED = [502, 504]
/** Refusals that are about this moment: too slow, too early, too often. */
const PASSING = [408, 425, 429]
/** Hub and page greet each other with this; a tab of another release then works alone. */
const VERSION = 2

/** Whatever goes wrong between page and relay; `status` is 0 when no answer came at all. */
export class RowcastError extends Error {
  /**
   * @param {{message?: string, status?: number, code?: string, details?: any, hint?: any, current?: any, etag?: string, sent?: boolean}} told
   *   `current` and `etag` tell of the row as it is, where a guarded write came too late (412);
   *   `sent` tells of a write without an answer whether it may be stored all the same
   */
  constructor({ message, status = 0, code = '', details = null, hint = null, current, etag, sent }) {
    super(message || 'the relay did not answer')
    this.name = 'RowcastError'
    Object.assign(this, { status, code, details, hint, current, etag, sent })
  }
}

/**
 * Whether a place in the log includes a transaction.
 * @param {string} token `epoch.view.snapshot`, the id of an event
 * @param {string | bigint} txid
 */
export function covers(token, txid) {
  const snapshot = token?.split('.')[2]
  if (!snapshot) return false
  const [xmax, ...running] = snapshot.split('-').map(hex => BigInt('0x' + hex))
  const behind = xmax - BigInt(txid)
  return behind > 0n && !running.includes(behind)
}

/**
 * The rows of one view, kept by the events of its stream. Pure: no socket and no clock.
 *
 * A snapshot arrives in pieces and replaces `rows` in one step when its last piece is here, so
 * that a screen which had rows never shows an empty or a half table in between.
 */
export class Replica {
  /** The last complete state, by key. @type {Map<string, any>} */
  rows = new Map()
  /** The version of each row, for `If-Match`. @type {Map<string, string>} */
  etags = new Map()
  /** Keys whose row was too large to be sent: `rows` has an older one, or none. */
  outdated = new Set()
  /** Whether `rows` has been a complete state at least once. */
  ready = false
  /** The place in the log that `rows` shows. */
  token = '0'
  /** Counts how often `rows` was replaced as a whole. */
  generation = 0
  /** The state under construction, and whether it still waits for its `snapshot-end`. */
  #next = null
  #open = false

  /**
   * Takes one event.
   * @param {string | any[]} data the data of the event, as text or parsed
   * @param {string} [id] the id of the event; `0` marks a piece that is not a state yet
   * @returns {any[]} the live changes in it; a snapshot is none
   */
  apply(data, id = this.token) {
    const changes = []
    for (const { type, key, value, headers = {} } of typeof data === 'string' ? JSON.parse(data) : data) {
      const { control, operation, txid, timestamp, etag, too_large } = headers
      if (control === 'reset' || control === 'snapshot-start') {
        this.#next = { rows: new Map(), etags: new Map(), outdated: new Set() }
        changes.length = 0
        this.#open = control === 'snapshot-start'
      } else if (control === 'snapshot-end') {
        this.#open = false
      } else if (operation) {
        const { rows, etags, outdated } = this.#next ?? this
        // A view that asks PostgreSQL may be told once more what its state had: no change, then.
        const same = operation === 'delete' ? !rows.has(key) && !outdated.has(key) : etag !== undefined && etag === etags.get(key)
        const known = key !== undefined && same && txid !== undefined && covers(this.token, txid)
        if (key !== undefined) {
          outdated.delete(key)
          if (etag && value !== undefined) etags.set(key, etag)
          else etags.delete(key)
          if (operation === 'delete') rows.delete(key)
          else if (too_large) outdated.add(key)
          else rows.set(key, value)
        }
        if (!this.#open && !known) changes.push({ type, key, value, operation, txid, timestamp, ...(etag && { etag }) })
      }
    }
    if (id === '0') return changes
    if (this.#next && !this.#open) {
      Object.assign(this, this.#next)
      this.#next = null
      this.ready = true
      this.generation++
    }
    if (!this.#next) this.token = id
    return changes
  }

  /** Forgets the pieces of a snapshot that was cut; the stream will start it over. */
  cut() {
    this.#next = null
    this.#open = false
  }
}

/**
 * One stream of the relay and the tabs that look at it. Lives in the SharedWorker, or in the
 * page where there is none. Knows ports and facts; what the facts mean is the page's business.
 */
class Source {
  /** Ports of the pages, each with how many beats it has left unanswered. @type {Map<MessagePort, number>} */
  ports = new Map()
  replica = new Replica()
  /** When the state was last proved fresh, in ms; 0 for never. */
  fresh = 0
  /** Whether the relay, or the lack of it, said that the state may be old. */
  behind = false
  /** The last trouble, as plain data. */
  error = null
  /** When the relay last spoke, and when it was last called. */
  #heard = 0
  #tried = 0
  /** Whether this connection has said itself whether it is up to date. */
  #told = false
  #attempt = 0
  /** Not before this moment, in ms, wants the relay to be called again. */
  #until = 0
  /** The latest request for each row that was too large; null for one that failed, until the next beat. @type {Map<string, symbol | null>} */
  #asked = new Map()
  #timer = 0
  /** The latest attempt to connect; an earlier one that still waits for a ticket gives up. */
  #turn
  /** The token that this connection was opened with, and the last one whose time was over. */
  #used
  #over
  /** Who waits for a token of the pages. @type {Set<(answer: {is?: string | null, error?: {message: string, status?: number, code?: string}}) => void>} */
  #hopes = new Set()
  #events
  #clock

  constructor(url, who) {
    this.url = url
    this.who = who
    this.#clock = setInterval(() => this.#beat(), 5_000)
  }

  join(port, { key, token }) {
    this.key = key ?? this.key
    port.onmessage = ({ data }) => {
      this.ports.set(port, 0)
      if (data === 'bye') this.#leave(port)
      if (data === 'check') this.check(true)
      if (data.token) for (const hope of this.#hopes) hope(data.token)
    }
    // Newer browsers tell when the other end has died; the beat finds out in the others.
    port.addEventListener?.('close', () => this.#leave(port))
    this.ports.set(port, 0)
    port.postMessage(this.#facts(this.replica.ready && this.#state()))
    if (!this.#turn) this.#connect(token)
  }

  /** Looks at the clock: after a sleep the connection may be dead without knowing it. */
  check(awake) {
    const silent = Date.now() - Math.max(this.#heard, this.#tried, this.#until)
    const limit = this.#events?.readyState === 1 ? (awake ? SILENCE / 2 : SILENCE) : awake ? 1_000 : PATIENCE
    if (Date.now() < this.#until) return
    // Whoever comes back to a page does not wait for what is left of a pause.
    if (this.#timer ? !awake : silent <= limit) return
    if (!awake) {
      // A proxy keeps what it is given, or the browser has no connection left: no end will tell of that.
      this.behind = true
      this.error = { message: 'the relay is silent' }
      this.#tell()
    }
    this.#again(awake)
  }

  #facts(more) {
    const { fresh, behind, error, replica: { ready, token, outdated } } = this
    return { version: VERSION, ready, token, outdated, fresh, behind, error, ...more }
  }

  #state() {
    const { rows, etags } = this.replica
    return { rows, etags }
  }

  #tell(more) {
    for (const port of this.ports.keys()) port.postMessage(this.#facts(more))
  }

  #beat() {
    this.check()
    for (const [key, turn] of this.#asked) if (!turn) this.#asked.delete(key)
    this.#fetchAll()
    for (const [port, missed] of this.ports) {
      if (missed > 5) {
        port.postMessage(this.#facts({ gone: true }))
        this.#leave(port)
      } else this.ports.set(port, missed + 1)
    }
    this.#tell()
  }

  #leave(port) {
    port.close()
    if (this.ports.delete(port) && !this.ports.size) this.#end()
  }

  #end() {
    this.#turn = null
    this.#events?.close()
    clearTimeout(this.#timer)
    clearInterval(this.#clock)
    const name = nameOf(this)
    if (sources.get(name) === this) sources.delete(name)
  }

  #address(ticket) {
    const { token } = this.replica
    return more(this.url, [token !== '0' && `last_event_id=${token}`, ticket && `ticket=${ticket}`])
  }

  /** With the token by which the page knew who sits there: the next one may be somebody else's. */
  async #connect(token) {
    this.#tried = Date.now()
    this.#timer = this.#until = 0
    const turn = (this.#turn = Symbol())
    let ticket
    try {
      ticket = this.who && (await this.#ticket(token))
    } catch (error) {
      if (this.#turn !== turn) return
      this.error = { ...error, message: error.message }
      this.#doubt()
      return this.#again()
    }
    if (this.#turn !== turn) return
    const events = (this.#events = new EventSource(this.#address(ticket)))
    events.onopen = () => {
      this.replica.cut()
      this.#told = false
      this.#until = 0
    }
    // A ticket is good for one connection: the next one is ours to make.
    events.onerror = () => this.#lost(events.readyState === 2, ticket)
    events.addEventListener('data', event => this.#data(event))
    events.addEventListener('control', event => this.#control(event))
  }

  /** The token of any page that looks: all of them are this person. */
  async #token(refused) {
    for (const port of this.ports.keys()) port.postMessage({ version: VERSION, ask: { refused } })
    let hope, timer
    const late = { error: { message: 'no page has a token' } }
    const answer = new Promise(resolve => {
      this.#hopes.add((hope = resolve))
      timer = setTimeout(resolve, 10_000, late)
    })
    const { is, error } = await answer.finally(() => {
      clearTimeout(timer)
      this.#hopes.delete(hope)
    })
    if (error) throw new RowcastError(error)
    return is
  }

  async #ticket(token) {
    const [, relay, path] = /^(.*?)(\/(?:rest\/v1|channels)\/[^?]*)/.exec(this.url)
    const ask = token => fetch(relay + '/tickets', { method: 'POST', headers: { 'content-type': 'application/json', ...bearer(token) }, body: JSON.stringify({ paths: [path] }) })
    // One whose time is over may still buy a ticket, for a stream that ends as it begins.
    this.#used = token ?? (await this.#token(this.#over))
    let answer = await ask(this.#used)
    // The page may hold a token that was made for another relay or another secret.
    if (answer.status === 401) answer = await ask((this.#used = await this.#token(this.#used)))
    if (!answer.ok) throw new RowcastError(await reason(answer))
    return (await answer.json()).ticket
  }

  /** Says that the state may be old, unless the relay speaks soon. */
  #doubt() {
    const lost = Date.now()
    setTimeout(() => {
      if (this.#heard > lost || this.behind || !this.ports.size) return
      this.behind = true
      this.#tell()
    }, GRACE)
  }

  #lost(closed, ticket) {
    this.#doubt()
    if (closed) this.#refused()
    else if (ticket) this.#again()
  }

  /** An EventSource gives up on any answer but 200 and does not say why. Ask, then decide. */
  async #refused() {
    const stop = new AbortController()
    const late = setTimeout(() => stop.abort(), ANSWER)
    const turn = this.#turn
    this.#timer = -1
    try {
      const answer = await this.#read(this.#address(), 'text/event-stream', stop.signal)
      if (this.#turn !== turn) return
      // A token that is no good any more is the next attempt's business.
      if (answer.status >= 400 && answer.status < 500 && !(this.who && answer.status === 401)) {
        this.error = await reason(answer)
        // A code makes it the relay's own word: this URL will never be a stream. Anything else is
        // a proxy on a bad day, and so is one that says by the status that it will pass.
        if (this.error.code && !PASSING.includes(answer.status) && this.ports.size) {
          this.#tell({ closed: true })
          return this.#end()
        }
      }
    } catch {
      // No answer at all: the error that follows says as much.
    } finally {
      clearTimeout(late)
      stop.abort()
    }
    if (this.#turn === turn) this.#again()
  }

  /** With the token of this connection: the next one may be somebody else's, and would end what is open. */
  async #read(url, accept, signal) {
    const ask = token => fetch(url, { headers: { accept, ...bearer(token) }, signal })
    const answer = await ask(this.#used)
    return this.who && answer.status === 401 ? ask(await this.#token(this.#used)) : answer
  }

  #again(soon) {
    clearTimeout(this.#timer)
    this.#events?.close()
    // What still waits for an answer gives up: there is one attempt at a time.
    this.#turn = Symbol()
    const wait = soon ? 0 : Math.max(this.#until - Date.now(), Math.min(5_000, 500 * 2 ** this.#attempt++) * (0.5 + Math.random() / 2))
    this.#timer = setTimeout(() => this.#connect(), wait)
  }

  #data({ data, lastEventId }) {
    this.#heard = Date.now()
    const { replica } = this
    const before = replica.generation
    const changes = replica.apply(data, lastEventId)
    if (lastEventId === '0') return
    if (before !== replica.generation) this.#asked.clear()
    this.#attempt = 0
    if (!this.#told) this.behind = false
    if (!this.behind) {
      this.error = null
      this.fresh = this.#heard
    }
    this.#tell({ changes, ...(before !== replica.generation && this.#state()) })
    for (const { key, value, operation } of changes) {
      if (value === undefined && operation !== 'delete') this.#asked.delete(key)
    }
    this.#fetchAll()
  }

  #control({ data, lastEventId }) {
    this.#heard = Date.now()
    const { upToDate, error, retry_ms } = JSON.parse(data)
    if (retry_ms) this.#until = this.#heard + retry_ms
    // The token's time is over and not the relay's: with the next one it goes on from here.
    if (this.who && error?.code === 'PGRST303') {
      this.replica.apply([], lastEventId)
      // A page that has no better token than the one before is not asked in a circle.
      const anew = this.#over !== this.#used
      this.#over = this.#used
      return this.#again(anew)
    }
    if (upToDate !== undefined) {
      this.#told = true
      this.behind = !upToDate
      this.error = error ? { status: 200, ...error } : null
      if (upToDate) {
        this.fresh = this.#heard
        this.#attempt = 0
      }
    }
    this.replica.apply([], lastEventId)
    this.#tell()
  }

  /** Gets the rows that were too large for the stream, if the page named the key's column. */
  #fetchAll() {
    if (!this.key) return
    for (const key of this.replica.outdated) if (!this.#asked.has(key)) this.#fetch(key)
  }

  async #fetch(key) {
    const { replica } = this
    const turn = Symbol()
    this.#asked.set(key, turn)
    const url = more(this.url, [`${this.key}=eq.${encodeURIComponent(key)}`])
    const { status, rows } = await this.#read(url, 'application/json', AbortSignal.timeout?.(60_000))
      .then(async answer => ({ status: answer.status, rows: answer.ok ? await answer.json() : [] }))
      .catch(() => ({ rows: [] }))
    // A newer change of the same row, or a new snapshot, makes this answer old news.
    if (this.#asked.get(key) !== turn) return
    // What the relay does not understand it will not understand the next time either.
    if (status === 400 || rows.length > 1) return
    if (!rows.length) return this.#asked.set(key, null)
    this.#asked.delete(key)
    if (replica.outdated.has(key)) this.#tell({ changes: replica.apply([{ key, value: rows[0], headers: { operation: 'update' } }]) })
  }
}

/** All streams of this worker or page, by URL and person. @type {Map<string, Source>} */
const sources = new Map()
const nameOf = ({ url, who }) => `${who}\n${url}`

function join(port, request) {
  const name = nameOf(request)
  if (!sources.has(name)) sources.set(name, new Source(request.url, request.who))
  sources.get(name).join(port, request)
}

const more = (url, pieces) => pieces.filter(Boolean).reduce((url, piece) => url + (url.includes('?') ? '&' : '?') + piece, url)
/** A URL as a page at its own relay may leave out half of it; elsewhere nothing stands for the rest. */
function whole(url) {
  try {
    return new URL(url, globalThis.location?.href).href
  } catch {
    throw new TypeError(`${url} is no whole URL, and there is no page that it could be of: put the address of the relay before it, as in http://127.0.0.1:3000/rest/v1/tasks`)
  }
}
/** A token of the page's. Its sign-in may answer with more than that, which is nobody's token. */
async function given(token, refused) {
  const is = await token(refused)
  if (is && typeof is !== 'string') throw new TypeError(`a token is a text, or null for nobody, and not: ${typeof is}`)
  return is
}
const bearer = token => (token ? { authorization: `Bearer ${token}` } : {})

/**
 * Whom a token is for: its claims without those that each new token has anew, by which the relay
 * tells streams apart, too. Nobody is the empty text.
 */
function personOf(token) {
  if (!token) return ''
  try {
    const bytes = Uint8Array.from(atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/')), letter => letter.charCodeAt(0))
    const { exp, iat, nbf, jti, ...claims } = JSON.parse(new TextDecoder().decode(bytes))
    return JSON.stringify(claims)
  } catch {
    return token
  }
}

/** The SharedWorker of this page; null once it has failed. */
let worker

/** Hands a port to the SharedWorker, or to this page when `alone` or when there is no other way. */
function hand(port, request, alone) {
  try {
    if (alone || worker === null || !globalThis.SharedWorker) throw 0
    if (!worker) {
      worker = new SharedWorker(import.meta.url, { type: 'module', name: 'rowcast' })
      // One that cannot be loaded says so once: each later view would wait for it, and hear nothing.
      worker.onerror = () => (worker = null)
    }
    worker.port.postMessage(request, [port])
    return worker
  } catch {
    join(port, request)
  }
}

/** What is known of a stream that has said nothing yet. */
const NOTHING = { ready: false, token: '0', fresh: 0, behind: false }

/** What a page holds: a view or a channel. Connects when somebody first listens. */
class Stream {
  /** The last trouble, or null. @type {RowcastError | null} */
  error = null
  /** Rows by key, whole after each event. @type {Map<string, any>} */
  rows = new Map()
  /** Keys whose row was too large for the stream and could not be fetched. @type {Set<string>} */
  outdated = new Set()
  /** @type {Map<string, string>} */
  #etags = new Map()
  status = 'connecting'
  #listeners = { rows: new Set(), change: new Set(), message: new Set(), status: new Set() }
  #waiting = new Set()
  #facts = NOTHING
  #alone = false
  #heard = 0
  #who
  #port
  #clock
  #page
  /** Ends with the port. */
  #call

  /**
   * @param {string} url
   * @param {{key?: string, signal?: AbortSignal, token?: (refused?: string) => Promise<string | null> | string | null}} [options]
   *   `key` names the column of the key, so that a row over the stream's size limit can be fetched;
   *   `signal` closes the stream; `token` gives a token that is still good, or null for nobody
   * @param {boolean} [channel] messages have no snapshot to wait for
   */
  constructor(url, { key, signal, token } = {}, channel = false) {
    this.url = whole(url)
    this.key = key
    this.token = token && (refused => given(token, refused))
    this.channel = channel
    if (signal?.aborted) this.status = 'closed'
    signal?.addEventListener('abort', () => this.close())
  }

  /** When the rows were last known to be the truth. @type {Date | null} */
  get since() {
    return this.#facts.fresh ? new Date(this.#facts.fresh) : null
  }

  /** Whether `rows` is a complete state: nothing in it then means that there is nothing. */
  get ready() {
    return this.#facts.ready
  }

  /** The version of a row, for the `If-Match` of a write. */
  etag(key) {
    return this.#etags.get(key)
  }

  /** Looks who sits here, after somebody has signed in or out: another person's stream is another one. */
  async renew() {
    const port = this.#port
    // Without an answer nothing is known; the next connection asks again.
    const who = (await this.token?.().then(personOf).catch(() => this.#who)) ?? ''
    if (!port || this.#port !== port || who === this.#who) return
    this.#forget()
    this.#reopen()
  }

  /** Somebody else sits here: what the one before was shown is not his to see. */
  #forget() {
    if (!this.#facts.ready && !this.rows.size) return
    this.rows = new Map()
    this.#etags = new Map()
    this.outdated = new Set()
    this.#facts = NOTHING
    this.#emit('rows', [], this.rows)
  }

  /**
   * Calls back with the whole state: when the first snapshot is complete, and after each event.
   * @param {(rows: any[], byKey: Map<string, any>) => void} listener
   * @returns {() => void} stops it; the stream is released when nobody listens any more
   */
  subscribe(listener) {
    if (this.#facts.ready) queueMicrotask(() => this.#listeners.rows.has(listener) && listener([...this.rows.values()], this.rows))
    return this.on('rows', listener)
  }

  /**
   * Listens to `change` (live changes of a view), `message` (of a channel) or `status`.
   * @returns {() => void} stops it
   */
  on(name, listener) {
    const listeners = Object.hasOwn(this.#listeners, name) && this.#listeners[name]
    if (!listeners || typeof listener !== 'function') throw new TypeError(`a view is listened to by on('change' | 'message' | 'status', a function) or subscribe(a function), and not by on('${name}', ${typeof listener})`)
    listeners.add(listener)
    this.#open()
    return () => {
      listeners.delete(listener)
      this.#idle()
    }
  }

  /**
   * Resolves when `rows` shows the given write: the `txid` is the header `Rowcast-Txid` of its
   * answer. No txid, nothing changed, nothing to wait for.
   * @param {string | null | undefined} txid
   * @param {{signal?: AbortSignal}} [options]
   */
  synced(txid, { signal } = {}) {
    if (!txid || covers(this.#facts.token, txid)) return Promise.resolve()
    if (this.status === 'closed') return Promise.reject(new RowcastError({ message: 'the stream is closed' }))
    if (signal?.aborted) return Promise.reject(signal.reason)
    return new Promise((resolve, reject) => {
      const wait = { txid, resolve, reject }
      this.#waiting.add(wait)
      signal?.addEventListener('abort', () => this.#waiting.delete(wait) && (reject(signal.reason), this.#idle()))
      this.#open()
    })
  }

  /** Lets go of the stream for good. */
  close() {
    this.#release()
    for (const { reject } of this.#waiting) reject(new RowcastError({ message: 'the stream is closed' }))
    this.#waiting.clear()
    this.#say('closed')
  }

  #open() {
    if (this.#port || this.status === 'closed') return
    if (!globalThis.EventSource && !globalThis.SharedWorker) throw new TypeError("there is no EventSource here; in Node, take one: globalThis.EventSource = (await import('eventsource')).EventSource")
    const { port1, port2 } = new MessageChannel()
    this.#port = port1
    this.#heard = Date.now()
    const { signal } = (this.#call = new AbortController())
    let greeted = false
    let slow = false
    const failed = () => {
      if (greeted || this.#port !== port1) return
      this.#alone = true
      this.#reopen()
    }
    port1.onmessage = ({ data }) => {
      if (slow && data.version === VERSION) {
        // The worker was only slow to start. Its streams are shared, and connections are few.
        slow = this.#alone = false
        if (this.#port) this.#reopen()
      }
      if (this.#port !== port1) return
      if (data.version !== VERSION) return failed()
      greeted = true
      if (data.ask) return this.#answer(port1, data.ask)
      if (data.gone) return this.#reopen()
      port1.postMessage('here')
      this.#take(data)
    }
    this.#clock = setInterval(() => this.#tick(), 1_000)
    this.#watch()
    const start = is => {
      if (this.#port !== port1) return
      const who = personOf(is)
      if (who !== this.#who) this.#forget()
      this.#who = who
      const worker = hand(port2, { url: this.url, key: this.key, who, token: is }, this.#alone)
      worker?.addEventListener('error', failed, { signal })
      const late = setTimeout(() => {
        if (greeted) return
        slow = Boolean(worker)
        failed()
      }, 3_000)
      signal.addEventListener('abort', () => clearTimeout(late))
    }
    if (!this.token) return start(null)
    this.token().then(start, error => {
      if (this.#port !== port1) return
      this.error = error
      // No stream is open for this page, and what it shows may be old.
      this.#facts = { ...this.#facts, behind: true }
      this.#tick()
      // Nobody has the other end.
      port1.close()
      setTimeout(() => this.#port === port1 && this.#reopen(), 2_000)
    })
  }

  /** The stream needs a token for its next connection. */
  async #answer(port, { refused }) {
    try {
      const is = await this.token(refused)
      // Somebody else sits here now: it is not this stream that he should have.
      if (personOf(is) === this.#who) port.postMessage({ token: { is } })
      else if (this.#port === port) {
        const { ready } = this.#facts
        this.#forget()
        if (ready) return this.#reopen()
        // Where each token is another's, a relay that is away would be asked without a pause.
        port.onmessage = null
        port.postMessage('bye')
        setTimeout(() => this.#port === port && this.#reopen(), 2_000)
      }
    } catch ({ message, status, code }) {
      port.postMessage({ token: { error: { message, status, code } } })
    }
  }

  /** The events after which a page may have slept through its own clock. */
  #watch() {
    if (!globalThis.addEventListener || this.#page) return
    const { signal } = (this.#page = new AbortController())
    const check = () => {
      this.#port?.postMessage('check')
      this.#tick()
    }
    addEventListener('online', check, { signal })
    // A worker has no document, and is never looked at.
    globalThis.document?.addEventListener('visibilitychange', check, { signal })
    addEventListener('pagehide', () => this.#drop(), { signal })
    addEventListener('pageshow', event => event.persisted && (this.#open(), this.#tick()), { signal })
  }

  #drop() {
    clearInterval(this.#clock)
    this.#call?.abort()
    this.#port?.postMessage('bye')
    this.#port = undefined
  }

  #reopen() {
    this.#drop()
    this.#open()
  }

  #release() {
    this.#drop()
    this.#page?.abort()
    this.#page = undefined
  }

  #idle() {
    if (this.#waiting.size || this.status === 'closed' || Object.values(this.#listeners).some(set => set.size)) return
    this.#release()
    this.#facts = { ...this.#facts, ready: false }
    this.#say('connecting')
  }

  #take({ rows, etags, changes = [], closed, ...facts }) {
    this.#heard = Date.now()
    this.#facts = facts
    this.outdated = facts.outdated
    this.error = facts.error && new RowcastError(facts.error)
    if (this.channel) facts.ready = facts.fresh > 0
    if (rows) {
      this.rows = rows
      this.#etags = etags
    } else {
      for (const { key, value, operation, etag } of changes) {
        if (key === undefined) continue
        if (etag && value !== undefined) this.#etags.set(key, etag)
        else this.#etags.delete(key)
        if (operation === 'delete') this.rows.delete(key)
        else if (value !== undefined) this.rows.set(key, value)
      }
    }
    for (const change of changes) this.#emit(this.channel ? 'message' : 'change', change)
    if (facts.ready && (rows || changes.length)) this.#emit('rows', [...this.rows.values()], this.rows)
    for (const wait of this.#waiting) {
      if (!covers(facts.token, wait.txid)) continue
      this.#waiting.delete(wait)
      wait.resolve()
    }
    if (closed) this.close()
    else {
      this.#tick()
      this.#idle()
    }
  }

  #tick() {
    const { ready, fresh, behind } = this.#facts
    // The worker beats every 5 s; one that does not is gone.
    if (this.#port && Date.now() - this.#heard > SILENCE) this.#reopen()
    if (behind || (fresh && Date.now() - fresh > SILENCE)) this.#say('stale')
    else this.#say(ready ? 'live' : 'connecting')
  }

  #say(status) {
    if (this.status === status || this.status === 'closed') return
    this.status = status
    this.#emit('status', status, this.error)
  }

  #emit(name, ...args) {
    for (const listener of this.#listeners[name]) {
      // One bad listener must not keep the others, or `synced`, from their news.
      try {
        listener(...args)
      } catch (error) {
        queueMicrotask(() => { throw error })
      }
    }
  }
}

/** A live view: the same URL that reads the rows once. */
export const view = (url, options) => new Stream(url, options)

/** A channel: messages that are not rows, by `on('message')`. By its name, or by its URL at a relay of another origin or below a path. */
export const channel = (name, options) => new Stream(/^(https?:\/)?\/(.*\/)?channels\/./.test(name) ? name : '/channels/' + encodeURIComponent(name), options, true)

/** A text that nobody else has. A page that is not from a safe origin has no `randomUUID`. */
export const unique = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('')

/**
 * One write. `await view.synced(txid)` then waits until the view shows it.
 *
 * A browser by itself sends a request again whose connection broke, so each write, call and message
 * has a name of its own by which the relay writes it once.
 * @param {'POST' | 'PATCH' | 'PUT' | 'DELETE'} method
 * @param {string} url
 * @param {any} [body]
 * @param {{signal?: AbortSignal, token?: (refused?: string) => Promise<string | null> | string | null, etag?: string, once?: string}} [options]
 *   with `etag`, nothing is written to a row that is another version by now; with the `once` of an
 *   earlier write that got no answer, the same write is stored once
 * @returns {Promise<{rows: any[], txid: string | null}>}
 * @throws {RowcastError} with `sent` where no answer came: whether it is stored is not known
 */
export async function write(method, url, body, { signal, token, etag, once = unique() } = {}) {
  whole(url)
  const named = /\/(rest\/v1|channels)\//.test(url)
  const headers = { 'content-type': 'application/json', prefer: 'return=representation', ...(etag && { 'if-match': `"${etag}"` }), ...(named && { 'idempotency-key': once }) }
  const attempt = async is => {
    const answer = await fetch(url, { method, headers: { ...headers, ...bearer(is) }, signal, body: body === undefined ? undefined : JSON.stringify(body) })
    // What was stored before is answered without its rows where they are too many to be kept.
    const empty = answer.status === 204 || answer.headers.get('idempotency-replayed')?.includes('omitted')
    // An answer that breaks off is none, and neither is a gateway's own; what the relay says has a code.
    const told = !answer.ok ? await reason(answer) : empty ? [] : await answer.json()
    if (named && UNANSWERED.includes(answer.status) && !told.code) throw new RowcastError(told)
    return { answer, told }
  }
  const send = async is => {
    for (let again = named; ; again = false) {
      try {
        return await attempt(is)
      } catch (cause) {
        if (signal?.aborted) throw cause
        if (!again) throw new RowcastError({ message: 'no answer came; it is not known whether this was stored', sent: true })
        await new Promise(done => setTimeout(done, 1_000))
      }
    }
  }
  const is = token && (await given(token))
  let { answer, told } = await send(is)
  // Nothing was written for a token that is no good.
  if (is && answer.status === 401) ({ answer, told } = await send(await given(token, is)))
  if (!answer.ok) throw new RowcastError(told)
  return { rows: told, txid: answer.headers.get('rowcast-txid') }
}

/** Why an answer is a refusal, as plain data: the relay's own words, or the status line. */
async function reason(answer) {
  const told = await answer.json().catch(() => ({}))
  return { message: `${answer.status} ${answer.statusText}`.trim(), ...told, status: answer.status, etag: answer.headers.get('etag')?.replaceAll(/^W\/|"/g, '') }
}

if (globalThis.SharedWorkerGlobalScope && self instanceof SharedWorkerGlobalScope) {
  self.onconnect = ({ ports: [page] }) => {
    page.onmessage = ({ data, ports: [port] }) => join(port, data)
  }
}
