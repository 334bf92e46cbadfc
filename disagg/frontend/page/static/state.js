// What the page knows: the snapshot, and what has come since.

const HISTORY = 15 * 60
const CHAPTERS = 200

export const state = {
  atS: 0, model: '', version: '', engines: new Map(), loads: {}, peers: {}, phases: {}, columns: [], history: [],
  story: new Map(), live: [], ended: [], silent: [],
}

export function take(event) {
  if (event.type === 'requests') {
    state.live = event.live
    state.ended = event.ended
    return
  }
  state.atS = event.at_s
  if (event.type === 'snapshot') {
    Object.assign(state, {model: event.model, version: event.version, columns: event.columns, history: event.history})
    state.engines.clear()
    state.story.clear()
    state.loads = {}
    state.peers = {}
  } else {
    state.history.push(event.sample)
    if (state.history.length > HISTORY) state.history.shift()
    for (const id of event.gone) {
      state.engines.delete(id)
      delete state.loads[id]
      delete state.peers[id]
    }
  }
  for (const engine of event.engines) state.engines.set(engine.id, engine)
  Object.assign(state.loads, event.loads)
  Object.assign(state.peers, event.peers)
  state.phases = event.phases
  state.silent = event.silent
  for (const chapter of event.story) state.story.set(chapter.number, chapter)
  while (state.story.size > CHAPTERS) state.story.delete(state.story.keys().next().value)
}

/** A column of the samples: [[seconds before now, value or null], …]. */
export function column(name) {
  const index = state.columns.indexOf(name)
  return state.history.map(sample => [state.atS - sample[0], sample[index]])
}
