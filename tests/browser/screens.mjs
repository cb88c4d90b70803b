// Screens of the history checker: an `EventSource` for each URL that is given, each in a tab of its
// own and on a page of the relay that it listens to. What a screen notices is a line of JSON on
// standard output. They end with standard input.
import { launch } from './chromium.mjs'

const tell = line => process.stdout.write(`${JSON.stringify(line)}\n`)

/** Runs in the page. What `EventSource` leaves to a page is done as `docs/api.md` says. */
function watch(path) {
  // Who hears nothing for so long is stale, and connects anew.
  const SILENCE = 12_000
  const notice = what => globalThis.notice(JSON.stringify({ at: Date.now(), ...what }))
  let id, source, heard, isOpen
  function connect() {
    const given = id
    heard = Date.now()
    isOpen = false
    // A new one does not know the id of the one before.
    source = new EventSource(given ? `${path}?last_event_id=${encodeURIComponent(given)}` : path)
    source.addEventListener('open', () => {
      heard = Date.now()
      isOpen = true
      notice({ kind: 'opened', id: given })
    })
    for (const kind of ['data', 'control', 'message']) {
      source.addEventListener(kind, ({ lastEventId, data }) => {
        heard = Date.now()
        id = lastEventId
        notice({ kind, id, data })
      })
    }
    source.addEventListener('error', () => {
      heard = Date.now()
      notice({ kind: isOpen ? 'ended' : 'refused' })
      isOpen = false
      // It comes back by itself, unless the answer was none for it.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1_000)
    })
  }
  connect()
  setInterval(() => {
    if (source.readyState === EventSource.CLOSED || Date.now() - heard < SILENCE) return
    source.close()
    notice({ kind: 'silent' })
    connect()
  }, 250)
}

/** A tab, and what starts its screen. */
async function open(browser, url, screen) {
  const page = await browser.newPage()
  await page.goto(new URL('/livez', url).href)
  const session = await page.context().newCDPSession(page)
  let sent, status
  session.on('Network.requestWillBeSent', ({ type }) => {
    if (type === 'EventSource') status = 0
  })
  session.on('Network.requestWillBeSentExtraInfo', ({ headers }) => {
    sent = headers['Last-Event-ID']
  })
  session.on('Network.responseReceived', ({ type, response }) => {
    if (type === 'EventSource') status = response.status
  })
  session.on('Runtime.bindingCalled', ({ payload }) => {
    const what = JSON.parse(payload)
    // What it came back with is what went over the wire: the header wins over the query.
    if (what.kind === 'opened') what.id = sent ?? what.id
    tell({ screen, status, ...what })
  })
  await session.send('Network.enable')
  await session.send('Runtime.enable')
  await session.send('Runtime.addBinding', { name: 'notice' })
  return () => page.evaluate(watch, new URL(url).pathname)
}

const browser = await launch()
process.stdin.resume().on('end', () => browser.close())
const starts = await Promise.all(process.argv.slice(2).map((url, screen) => open(browser, url, screen)))
console.log('ready')
await Promise.all(starts.map(start => start()))
