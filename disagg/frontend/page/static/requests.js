// The lists of requests, and the story.

import {$, clock, element, keep, say, seconds} from './dom.js'
import {state} from './state.js'

const where = request => [request.prefill, request.decode].filter(Boolean).join(' → ') || '–'
const again = request => request.tries > 1 ? `, try ${request.tries}` : ''

export function paintRequests(search, onRequest) {
  list($('live'), state.live, search, onRequest, request => [
    `${request.phase}${again(request)}`, seconds(request.age_s), `${request.prompt_tokens} + ${request.tokens}`, where(request),
  ])
  list($('ended'), state.ended, search, onRequest, request => [
    request.error ? `${request.phase}: ${request.error}` : `${request.phase}${again(request)}`, seconds(request.age_s),
    seconds(request.ttft_s), `${request.prompt_tokens} + ${request.tokens}`, where(request),
  ])
  say($('phases'), Object.entries(state.phases).map(([phase, count]) => `${count} ${phase}`).join(', '))
}

function list(body, requests, search, onRequest, cells) {
  const found = requests.filter(request => !search || [request.id, request.client_id ?? '', where(request)].some(word => word.includes(search)))
  keep(body, found, request => request.id, request => {
    const title = request.client_id ? `${request.id}, ${request.client_id}` : request.id
    const open = element('button', {type: 'button', title, onclick: () => onRequest(request.id)}, request.client_id ?? request.id.slice(0, 12))
    return element('tr', {}, element('td', {}, open), ...cells(request).map(() => element('td')))
  }, (row, request) => cells(request).forEach((text, index) => {
    const cell = row.children[index + 1]
    say(cell, text)
    if (cell.title !== text) cell.title = text
  }))
}

const TOLD = {
  new: 'is new', dead: 'died', ready: 'is ready', starting: 'starts', draining: 'drains', quarantined: 'set aside', removed: 'removed',
}

export function paintStory(search) {
  const chapters = [...state.story.values()].sort((one, other) => other.at_s - one.at_s || other.number - one.number).filter(chapter => !search || sentence(chapter).includes(search))
  keep($('story'), chapters, chapter => chapter.number, chapter => element('li', {data: {kind: chapter.kind}},
    element('time', {textContent: clock(chapter.at_s)}), element('span')), (row, chapter) => say(row.lastChild, sentence(chapter)))
}

export function sentence({kind, subjects, count, detail}) {
  const names = subjects.join(', ')
  if (kind === 'moved') return `${streams(count)} moved on from ${names}`
  if (kind === 'retried') return `${requests(count)} tried again after ${names}`
  const more = count > subjects.length ? ` and others, ${count} times` : ''
  return `${names}${more} ${TOLD[kind] ?? kind}${detail ? `: ${detail}` : ''}`
}

const streams = count => count === 1 ? '1 stream' : `${count} streams`
const requests = count => count === 1 ? '1 request' : `${count} requests`
