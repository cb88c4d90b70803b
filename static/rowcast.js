/** Follows a view: calls `each` with every array of changes that the relay sends. */
export function watch(url, each) {
  const source = new EventSource(url);
  source.addEventListener("data", (event) => each(JSON.parse(event.data)));
  return source;
}
