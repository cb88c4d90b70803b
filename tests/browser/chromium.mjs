// A real Chromium without a window.
import { existsSync } from 'node:fs'
import { chromium } from 'playwright-core'

const PLACES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome']

/** `http://127.0.0.1:PORT` */
export const url = process.env.ROWCAST_URL
if (!url) throw new Error('ROWCAST_URL is not set: run these tests with cargo nextest run --test relay browser')

/** Starts the browser that CHROMIUM names, or the first one that is installed. */
export function launch() {
  const executablePath = process.env.CHROMIUM || PLACES.find(place => existsSync(place))
  if (!executablePath) throw new Error(`no Chromium: set CHROMIUM, or install one of ${PLACES.join(', ')}`)
  return chromium.launch({
    executablePath,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  })
}
