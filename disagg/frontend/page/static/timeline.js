// One request as a picture: who worked on it when, on both legs; beneath it what is known of it.

import {element, seconds} from './dom.js'

const SVG = 'http://www.w3.org/2000/svg'
const WIDTH = 580, LEFT = 8, ROW = 40

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  if (text !== undefined) made.textContent = text
  return made
}

/** [[row's name, [[from, to, kind, what], …]], …]; times in ms, bars without both ends left out. */
export function rowsOf(request) {
  const at = request.timeline_ms
  const end = at.finish ?? at.failure ?? at.client_gone ?? Math.max(...Object.values(at))
  const reads = request.prefill ?? request.decode
  const rows = [
    ['frontend', [[at.received, at.admitted ?? end, 'wait', 'waits for a pair']]],
    [`prefill: ${reads}`, [[at.dispatched, at.prefill_start, 'wait', 'waits for its turn'], [at.prefill_start, at.prefill_end, 'read', 'reads the prompt']]],
    [`KV${request.lane ? ` over ${request.lane}` : ''}`, [[at.transfer_start, at.transfer_end, 'move', 'moves']]],
    [`decode: ${request.decode}`, [[at.dispatched, at.first_token, 'wait', 'waits for KV'], [at.first_token, end, 'make', 'makes tokens']]],
  ]
  return rows.map(([name, bars]) => [name, bars.filter(([from, to]) => from !== undefined && to >= from)]).filter(([, bars]) => bars.length)
}

export function picture(request) {
  const rows = rowsOf(request)
  const end = Math.max(1e-3, ...rows.flatMap(([, bars]) => bars.map(bar => bar[1])))
  const x = ms => LEFT + (WIDTH - 2 * LEFT) * ms / end
  const svg = shape('svg', {viewBox: `0 0 ${WIDTH} ${rows.length * ROW + 22}`, role: 'img'})
  svg.append(shape('title', {}, rows.flatMap(([name, bars]) => bars.map(([from, to, , what]) => `${name} ${what} ${seconds((to - from) / 1000)}`)).join('; ')))
  for (const part of [0, .25, .5, .75, 1]) {
    svg.append(shape('line', {x1: x(end * part), x2: x(end * part), y1: 0, y2: rows.length * ROW}))
    svg.append(shape('text', {x: x(end * part), y: rows.length * ROW + 15, class: 'axis', 'text-anchor': part === 0 ? 'start' : part === 1 ? 'end' : 'middle'}, seconds(end * part / 1000)))
  }
  rows.forEach(([name, bars], index) => {
    const top = index * ROW
    svg.append(shape('text', {x: LEFT, y: top + 13}, name))
    for (const [from, to, kind, what] of bars) {
      const bar = shape('rect', {x: x(from), y: top + 18, width: Math.max(1.5, x(to) - x(from)), height: 14, rx: 2, class: kind})
      bar.append(shape('title', {}, `${what}: ${seconds((to - from) / 1000)}`))
      svg.append(bar)
    }
  })
  return svg
}

/** [[name, value], …] of all that the timeline knows. */
export function facts(request) {
  const {timeline_ms, routed, usage, lost_tries = [], ...rest} = request
  const told = Object.entries(rest).filter(([, value]) => value !== null).map(([name, value]) => [name.replaceAll('_', ' '), flat(value)])
  const why = routed ? [['routed by', flat(routed)]] : []
  return [...why, ...told, ['usage', flat(usage)], ...lost_tries.map(lost => ['lost try', `on ${lost.on} after ${lost.after_tokens} tokens: ${lost.why}`])]
}

function flat(value) {
  if (typeof value === 'number' && !Number.isInteger(value)) return value.toPrecision(3)
  if (value === null || typeof value !== 'object') return String(value)
  return Object.entries(value).filter(([, each]) => each !== null)
    .map(([name, each]) => Array.isArray(value) ? flat(each) : `${name.replaceAll('_', ' ')} ${flat(each)}`).join(', ')
}

export const list = pairs => element('dl', {}, ...pairs.filter(([, value]) => value)
  .flatMap(([name, value]) => [element('dt', {textContent: name}), element('dd', {textContent: value})]))
