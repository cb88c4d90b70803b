/** The client of Rowcast; see rowcast.js. */

/** What a stream is worth right now. `stale`: the rows may be behind the database. */
export type Status = 'connecting' | 'live' | 'stale' | 'closed'

/** One change, as it was committed. `value` is absent for a delete and for a row too large to be sent. */
export interface Change<Row = any> {
  type: string
  key?: string
  value?: Row
  operation: 'insert' | 'update' | 'delete' | 'message' | 'notify'
  /** Decimal text of the transaction's xid8. */
  txid?: string
  /** RFC 3339. */
  timestamp?: string
  /** The version of the row, for `If-Match`. */
  etag?: string
}

/** Gives a token that is still good, another one than `refused`; null for nobody. */
export type Token = (refused?: string) => Promise<string | null> | string | null

/** Whatever goes wrong between page and relay. */
export class RowcastError extends Error {
  constructor(told: { message?: string; status?: number; code?: string; details?: unknown; hint?: string | null; current?: unknown; etag?: string; sent?: boolean })
  /** The HTTP status; 0 when no answer came at all. */
  readonly status: number
  /** SQLSTATE or PGRST code; empty when the relay did not give one. */
  readonly code: string
  readonly details: unknown
  readonly hint: string | null
  /** The row as it is, where a write with an `etag` came too late (status 412). */
  readonly current?: any
  /** The version of `current`. */
  readonly etag?: string
  /** A write that got no answer, or a gateway's 502 or 504, twice: it may be stored all the same. */
  readonly sent?: boolean
}

export interface Options {
  /** The column of the key: rows over the stream's size limit are then fetched by it. */
  key?: string
  /** Closes the stream. */
  signal?: AbortSignal
  /** Who reads. Called for each connection; streams of one person are shared by all tabs. */
  token?: Token
}

interface Stream {
  readonly url: string
  readonly status: Status
  /** When the rows were last known to be the truth. */
  readonly since: Date | null
  /** Whether the state is complete: no rows then means that there are none. */
  readonly ready: boolean
  readonly error: RowcastError | null
  on(name: 'status', listener: (status: Status, error: RowcastError | null) => void): () => void
  /** Resolves when this stream covers the write; at once when there is no txid. Rejects on `close`. */
  synced(txid: string | null | undefined, options?: { signal?: AbortSignal }): Promise<void>
  /** Asks `token` anew: if somebody else sits here, the rows are forgotten and his stream is opened. */
  renew(): Promise<void>
  close(): void
}

export interface View<Row = any> extends Stream {
  /** The last complete state, by key. */
  readonly rows: ReadonlyMap<string, Row>
  /** Keys whose row was too large for the stream: `rows` has an older one, or none. */
  readonly outdated: ReadonlySet<string>
  /** The version of a row, for the `etag` of a write. */
  etag(key: string): string | undefined
  /** The whole state: once the first snapshot is complete, after each event, and empty when somebody else's is awaited. */
  subscribe(listener: (rows: Row[], byKey: ReadonlyMap<string, Row>) => void): () => void
  /** Live changes only: what a snapshot or a TRUNCATE replaced is told by `subscribe` alone. */
  on(name: 'change', listener: (change: Change<Row>) => void): () => void
  on(name: 'status', listener: (status: Status, error: RowcastError | null) => void): () => void
}

export interface Channel<Payload = any> extends Stream {
  on(name: 'message', listener: (message: Change<Payload>) => void): () => void
  on(name: 'status', listener: (status: Status, error: RowcastError | null) => void): () => void
}

/** A live view of the rows that the URL reads. Connects when somebody first listens. */
export function view<Row = any>(url: string, options?: Options): View<Row>

/** Messages that are not rows. By the channel's name, or by its URL at a relay of another origin or below a path. */
export function channel<Payload = any>(nameOrUrl: string, options?: Options): Channel<Payload>

/** A text that nobody else has, for `once`. */
export function unique(): string

/**
 * One write; throws a RowcastError when it is refused, or, with `sent`, when no answer came.
 * `rows` is what the answer holds: of a call what the function returns, of a batch its answers.
 */
export function write<Row = any>(
  method: 'POST' | 'PATCH' | 'PUT' | 'DELETE',
  url: string,
  body?: unknown,
  options?: {
    signal?: AbortSignal
    token?: Token
    /** Writes nothing to a row that is another version by now: RowcastError with status 412. */
    etag?: string
    /** Names this write, to send it again after no answer came: the relay stores it once. */
    once?: string
  },
): Promise<{ rows: Row[]; txid: string | null }>

/** Whether a token (the id of an event) includes a transaction. */
export function covers(token: string, txid: string | bigint): boolean

/** The rows of one view, kept by the events of its stream. Pure. */
export class Replica<Row = any> {
  rows: Map<string, Row>
  etags: Map<string, string>
  outdated: Set<string>
  /** Whether `rows` has been a complete state at least once. */
  ready: boolean
  token: string
  /** Counts how often `rows` was replaced as a whole. */
  generation: number
  /** Takes one event; returns the live changes in it. */
  apply(data: string | unknown[], id?: string): Change<Row>[]
  /** Forgets the pieces of a snapshot that was cut. */
  cut(): void
}
