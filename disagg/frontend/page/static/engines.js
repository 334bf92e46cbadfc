// Engines as a picture: by role, then by node, one cell a rank. Its fill is the KV that is taken.

import {ofRole} from './actions.js'
import {$, element, keep, mark, number, say} from './dom.js'
import {state} from './state.js'

const MANY = 64  // ranks: beyond, cells are small
const naturally = new Intl.Collator(undefined, {numeric: true}).compare
const ROLES = ['prefill', 'decode', 'aggregated', 'embedding']

export function paintEngines(search, onEngine) {
  const pools = new Map()
  let ranks = 0, ready = 0
  for (const engine of state.engines.values()) {
    ranks += engine.ranks
    ready += engine.state === 'ready'
    const nodes = pools.get(engine.role) ?? pools.set(engine.role, new Map()).get(engine.role)
    const node = engine.nodes[0] || 'no node yet'
    nodes.get(node)?.push(engine) ?? nodes.set(node, [engine])
  }
  say($('census'), `${ready} of ${state.engines.size} ready, ${ranks} ranks`)
  const parent = $('engines')
  parent.classList.toggle('many', ranks > MANY)
  const roles = [...pools.keys()].sort((one, other) => ROLES.indexOf(one) - ROLES.indexOf(other))
  keep(parent, roles, role => role, role => element('div', {className: 'pool', data: {role}},
    element('div', {}, element('h3', {textContent: role}), ofRole(role)), element('div', {className: 'nodes'})), (pool, role) => {
    const nodes = [...pools.get(role)].sort(([one], [other]) => naturally(one, other))
    keep(pool.lastChild, nodes, ([node]) => node, ([node]) => element('div', {className: 'node'}, element('small', {textContent: node})),
      (row, [, engines]) => paintNode(row, engines, search, onEngine))
  })
}

function paintNode(row, engines, search, onEngine) {
  row.engines ??= row.appendChild(element('div', {className: 'node'}))
  engines.sort((one, other) => naturally(one.id, other.id))
  keep(row.engines, engines, engine => engine.id, engine => {
    const open = () => onEngine(engine.id)
    return element('div', {className: 'engine', data: {engine: engine.id}},
      element('button', {type: 'button', onclick: open}, element('span'), element('em')), element('div', {className: 'ranks'}))
  }, (card, engine) => paintEngine(card, engine, search))
}

function paintEngine(card, engine, search) {
  const [head, cells] = card.children
  const loads = state.loads[engine.id] ?? []
  mark(card, 'state', engine.state)
  card.classList.toggle('faded', Boolean(search) && ![engine.id, engine.role, engine.state, ...engine.nodes].some(word => word.includes(search)))
  say(head.firstChild, engine.id)
  say(head.lastChild, engine.restarts ? `${engine.state} · restarted ${engine.restarts}×` : engine.state)
  const pairs = state.peers[engine.id] ?? 0
  const title = `${engine.id}: ${engine.state}${engine.detail ? `, ${engine.detail}` : ''}; incarnation ${engine.incarnation}, ${pairs} pairs`
  if (head.title !== title) head.title = title
  const ranks = Array.from({length: engine.ranks}, (_, rank) => rank)
  keep(cells, ranks, rank => rank, () => element('div', {className: 'rank'}, element('b'), element('i'), element('span')), (cell, rank) => {
    const [requests, kv, made, read] = loads[rank] ?? [0, 0, 0, 0]
    const share = engine.kv_tokens ? Math.min(1, kv / engine.kv_tokens) : 0
    const width = share.toFixed(2)
    if (cell.share !== width) cell.style.setProperty('--kv', cell.share = width)
    say(cell.firstChild, String(requests))
    say(cell.children[1], engine.kv_tokens ? ` · ${Math.round(share * 100)} %` : '')
    say(cell.lastChild, `${number(engine.role === 'prefill' ? read : made)} tok/s`)
  })
}

/** What the panel says of an engine: [[name, value], …]. */
export function aboutEngine(engine) {
  const loads = state.loads[engine.id] ?? []
  const ranks = loads.map(([requests, kv, made, read], rank) => [`rank ${rank}`,
    `${requests} in flight, ${number(kv)}${engine.kv_tokens ? ` of ${number(engine.kv_tokens)}` : ''} KV tokens, ${made} tokens/s made, ${read} read`])
  return [
    ['state', engine.state], ['why', engine.detail], ['role', engine.role], ['nodes', engine.nodes.join(', ')],
    ['incarnation', String(engine.incarnation)], ['restarts', String(engine.restarts)],
    ['since', new Date(engine.since_s * 1000).toLocaleString()], ['lane', engine.lane],
    ['pairs', String(state.peers[engine.id] ?? 0)], ...ranks,
  ]
}
