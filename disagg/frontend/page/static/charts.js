// The figures, each with the last 15 minutes beneath it.

import {element, keep, number, say} from './dom.js'
import {column, state} from './state.js'

const SPAN_S = 15 * 60
const GAP_S = 5  // nobody looked: no line across
const ms = value => value == null ? '–' : value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`
const FIGURES = [
  ['tokens made / s', 'made', number, '--ready'],
  ['tokens read / s', 'read', number, '--starting'],
  ['run', 'running', number, '--accent'],
  ['wait', 'queued', number, '--draining'],
  ['answers / s', 'ended', number, '--accent'],
  ['failures / s', 'failed', number, '--dead'],
  ['first token, p50', 'ttft_ms_p50', ms, '--accent'],
  ['first token, p99', 'ttft_ms_p99', ms, '--quarantined'],
].map(([title, name, shown, colour]) => ({title, name, shown, colour}))

export function paintFigures(parent) {
  keep(parent, FIGURES, figure => figure.name, make, update)
}

function make({title}) {
  return element('div', {className: 'figure'}, element('small', {textContent: title}), element('b'), element('canvas'))
}

function update(node, {title, name, shown, colour}) {
  const points = column(name)
  const newest = points.length ? points[points.length - 1][1] : null
  say(node.children[1], state.history.length ? shown(newest) : '–')
  draw(node.children[2], points, getComputedStyle(document.documentElement).getPropertyValue(colour))
  const most = Math.max(0, ...points.map(point => point[1] ?? 0))
  node.title = `${title}: at most ${shown(most)} in the last 15 minutes`
}

function draw(canvas, points, colour) {
  const scale = devicePixelRatio, width = canvas.clientWidth, height = canvas.clientHeight
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale)
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale)
  const pen = canvas.getContext('2d')
  pen.setTransform(scale, 0, 0, scale, 0, 0)
  pen.clearRect(0, 0, width, height)
  const most = Math.max(1e-9, ...points.map(point => point[1] ?? 0))
  pen.strokeStyle = colour
  pen.lineWidth = 1.5
  pen.beginPath()
  let last = Infinity
  for (const [ageS, value] of points) {
    if (value == null) continue
    const x = width * (1 - ageS / SPAN_S), y = height - 2 - (height - 6) * value / most
    if (last - ageS > GAP_S) pen.moveTo(x, y)
    else pen.lineTo(x, y)
    last = ageS
  }
  pen.stroke()
}
