/** Follows a view: calls `each` with every array of changes that the relay sends. */
export function watch(url: string, each: (changes: object[]) => void): EventSource;
