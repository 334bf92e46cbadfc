// The page: events come in, at most one painting a frame goes out.

import {ofEngine, ofRequest} from './actions.js'
import {paintFigures} from './charts.js'
import {$, element, mark, say} from './dom.js'
import {aboutEngine, paintEngines} from './engines.js'
import {ask, follow, forgetKey, keepKey} from './feed.js'
import {paintRequests, paintStory} from './requests.js'
import {state, take} from './state.js'
import {facts, list, picture} from './timeline.js'

let search = ''
let isDue = false
let openEngine = null  // its id, while the panel shows one
let before = null  // what had the focus when the panel opened

function paintSoon() {
  if (isDue) return
  isDue = true
  requestAnimationFrame(paint)
}

function paint() {
  isDue = false
  const beganMs = performance.now()
  document.title = `${state.model} · disagg`
  say($('model'), state.model)
  say($('version'), `· disagg ${state.version}`)
  paintFigures($('figures'))
  paintEngines(search, showEngine)
  paintRequests(search, showRequest)
  paintStory(search)
  say($('silent'), silence(state.silent))
  if (openEngine !== null) fillEngine()
  say($('paint'), `· painted in ${(performance.now() - beganMs).toFixed(1)} ms`)
}

const silence = ([first, ...more]) => first === undefined ? '' : more.length
  ? `frontends ${[first, ...more].join(', ')} do not answer: what their requests do is missing here`
  : `frontend ${first} does not answer: what its requests do is missing here`

function open(title, ...content) {
  if ($('detail').hidden) before = document.activeElement
  const close = element('button', {type: 'button', className: 'close', textContent: 'Esc', onclick: shut})
  $('detail').replaceChildren(close, element('h2', {textContent: title}), ...content)
  $('detail').hidden = false
  $('detail').focus()
}

function shut() {
  openEngine = null
  $('detail').hidden = true
  before?.focus()
}

function showEngine(id) {
  open(id, ofEngine(id), element('dl'))
  openEngine = id
  fillEngine()
}

function fillEngine() {
  const engine = state.engines.get(openEngine)
  $('detail').lastChild.replaceWith(list(engine ? aboutEngine(engine) : [['state', 'it is gone']]))
}

async function showRequest(id) {
  openEngine = null
  open(id, element('p', {textContent: 'asking …'}))
  const answer = await ask(`requests/${encodeURIComponent(id)}`)
  const said = JSON.parse((await answer.text()).replace(/"room":(\d+)/, '"room":"$1"'))  // 63 bits: more than a number holds
  if (answer.ok) open(id, ...ofRequest(said, () => showRequest(id)), picture(said), list(facts(said)))
  else open(id, element('p', {textContent: said.error.message}))
}

function begin() {
  $('door').hidden = true
  follow({
    event(data) {
      take(data)
      document.querySelector('main').hidden = false
      paintSoon()
    },
    link(how, why = '') {
      mark($('link'), 'state', how)
      say($('link'), why ? `${how}: ${why}; tries again` : how)
    },
    refused(why, hadKey) {
      forgetKey()
      mark($('link'), 'state', 'lost')
      say($('link'), 'a key is needed')
      say($('refusal'), hadKey ? why : '')
      document.querySelector('main').hidden = true
      $('door').hidden = false
      $('key').focus()
    },
  })
}

$('door').addEventListener('submit', event => {
  event.preventDefault()
  keepKey($('key').value.trim())
  $('key').value = ''
  begin()
})
$('search').addEventListener('input', event => {
  search = event.target.value.trim()
  paintSoon()
})
$('ask-no').addEventListener('click', () => $('ask').close())
document.addEventListener('keydown', event => {
  if ($('ask').open) return  // its Esc closes it alone
  const isTyping = event.target instanceof HTMLInputElement
  if (event.key === '/' && !isTyping) {
    event.preventDefault()
    $('search').focus()
  } else if (event.key === 'Escape') {
    if (!$('detail').hidden) shut()
    else if (isTyping && event.target.id === 'search') {
      search = event.target.value = ''
      event.target.blur()
      paintSoon()
    }
  }
})
addEventListener('resize', paintSoon)
begin()
