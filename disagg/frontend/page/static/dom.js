// Elements, and lists of them that change only where their data does. Texts are texts: nothing here makes HTML.

export const $ = id => document.getElementById(id)

/** A new element; `options`: its properties, and `data` for its data-… attributes. */
export function element(tag, options = {}, ...children) {
  const {data = {}, ...properties} = options
  const made = Object.assign(document.createElement(tag), properties)
  Object.assign(made.dataset, data)
  made.append(...children)
  return made
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text
}

export function mark(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value
}

/** Makes the children of `parent` those of `items`, in their order: each is made once, by its key, and then updated. */
export function keep(parent, items, keyOf, make, update) {
  const kept = parent.kept ??= new Map()
  const wanted = new Set(items.map(keyOf))
  for (const [key, node] of kept) if (!wanted.has(key)) { node.remove(); kept.delete(key) }
  let place = parent.firstChild
  for (const item of items) {
    const key = keyOf(item)
    let node = kept.get(key)
    if (!node) kept.set(key, node = make(item))
    update(node, item)
    if (node === place) place = place.nextSibling
    else parent.insertBefore(node, place)
  }
}

export const number = value => value >= 10000 ? `${Math.round(value / 1000)}k` : value >= 1000 ? `${(value / 1000).toFixed(1)}k`
  : value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1)
export const seconds = value => value == null ? '–' : value < 1 ? `${Math.round(value * 1000)} ms` : value < 100 ? `${value.toFixed(1)} s`
  : `${Math.round(value / 60)} min`
export const clock = atS => new Date(atS * 1000).toLocaleTimeString()
