/**
 * What this browser keeps of a person's choices, for all of its windows. One that is told to keep
 * nothing refuses even to be asked: then a choice lasts as long as its page.
 */
const here = new Map()

/** @returns {string | null} null for what was never kept */
export function kept(name) {
  if (here.has(name)) return here.get(name)
  try {
    return localStorage.getItem(name)
  } catch {
    return null
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(name, value)
    here.delete(name)
  } catch {
    here.set(name, value)
  }
}
