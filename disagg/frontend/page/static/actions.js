// What an operator orders from the page. Nothing is done before it is confirmed; what a change would do is asked first.

import {$, element, say} from './dom.js'
import {ask} from './feed.js'
import {state} from './state.js'

const LOOK_MS = 1000  // at a change that is under way
const LOOKS_MAX = 3600
const GONE_AFTER = 2  // looks that do not find it
const ENDED = ['finished', 'failed', 'cancelled']

const button = (text, onclick) => element('button', {type: 'button', textContent: text, onclick})
const actions = (...buttons) => element('div', {className: 'actions'}, ...buttons)

/** Buttons of an engine's panel. */
export const ofEngine = id => actions(
  button('Drain', () => propose(`Drain ${id}`, drainCosts(id, 'it takes no new work, what runs ends or moves on, then it stops'), 'Drain', () => drain(id, false))),
  button('Restart', () => propose(`Restart ${id}`, drainCosts(id, 'it drains, and is started again'), 'Restart', () => drain(id, true))),
)

/** Of a role's heading. */
export const ofRole = role => actions(
  button('Scale', () => proposeScale(role)),
  button('Restart all', () => proposeChange(`Restart all ${role} engines, one after the other`, 'Restart', () => ({do: 'restart', of: [role]}))),
)

/** Of a request's panel; nothing once it has ended. `done`: what to do when it is cancelled. */
export const ofRequest = ({id, phase}, done) => ENDED.includes(phase) ? [] : [actions(
  button('Cancel', () => propose(`Cancel ${id}`, [`it is ${phase}; its client is told that it was cancelled`], 'Cancel it', async () => {
    await send(`../v1/requests/${encodeURIComponent(id)}`, 'DELETE')
    done()
    return `${id} is cancelled`
  })),
)]

async function drain(id, again) {
  await send(`engines/${encodeURIComponent(id)}/drain${again ? '?restart=1' : ''}`, 'POST')
  return `${id} drains${again ? ', and starts again' : ''}`
}

function drainCosts(id, what) {
  const engine = state.engines.get(id)
  const ready = [...state.engines.values()].filter(each => each.role === engine?.role && each.group === engine.group && each.state === 'ready')
  const isLast = ready.length === 1 && ready[0].id === id
  return isLast ? [what, `it is the last ${engine.role} engine that is ready: what needs one is refused without it`] : [what]
}

function proposeScale(role) {
  const now = [...state.engines.values()].filter(engine => engine.role === role).length
  const count = element('input', {type: 'number', min: '0', max: '999999', value: String(now), id: 'count', required: true})
  const label = element('label', {}, `${role} engines `, count)
  const whole = () => {
    if (!count.checkValidity() || !count.value) throw new Error('say how many engines, as a whole number')
    return {do: 'scale', counts: {[role]: Number(count.value)}}
  }
  proposeChange(`Scale ${role}`, 'Scale', whole, label)
  count.addEventListener('input', () => $('ask').forget())
}

/** Two steps: what it would do, by the controller's own words; then it is ordered, as it was shown. */
function proposeChange(title, verb, orderOf, ...content) {
  let shown = null  // the order that was shown, and what it asks; null: nothing was shown yet
  let generation = 0  // of what is asked: an answer to what was said before is none
  const told = element('div')
  propose(title, [], 'See what it would do', async () => {
    if (shown === null) {
      const order = orderOf(), mine = generation
      const seen = await send('changes', 'POST', {order, dry_run: true})
      if (mine !== generation) return null
      shown = {order, agreed: seen.question}
      told.replaceChildren(...[...seen.lines, seen.question && `It asks: ${seen.question}`].filter(Boolean).map(paragraph))
      if (!told.hasChildNodes()) told.append(paragraph(seen.change ? 'this is under way already' : 'there is nothing to do'))
      say($('ask-yes'), verb)
      return null
    }
    const begun = await send('changes', 'POST', shown)
    if (!begun.change) return 'there is nothing to do'
    followChange(begun.change)
    return `${title} is under way`
  }, ...content, told)
  $('ask').forget = () => {
    shown = null
    generation++
    told.replaceChildren()
    say($('ask-yes'), 'See what it would do')
  }
}

const paragraph = text => element('p', {textContent: text})

let proposals = 0  // each takes the dialog's place: a late answer to an earlier one changes nothing there

/** Opens the dialog. `act` gives what to say when it is done (null: the dialog stays), and throws why it is not. */
function propose(title, lines, verb, act, ...content) {
  const dialog = $('ask'), proposal = ++proposals
  const isOpen = () => dialog.open && proposal === proposals
  dialog.forget?.()
  dialog.forget = () => {}
  say($('ask-title'), title)
  say($('ask-error'), '')
  $('ask-body').replaceChildren(...lines.map(paragraph), ...content)
  say($('ask-yes'), verb)
  $('ask-yes').disabled = false
  $('ask-yes').onclick = async () => {
    say($('ask-error'), '')
    $('ask-yes').disabled = true
    try {
      const told = await act()
      if (told === null) return
      if (isOpen()) dialog.close()
      say($('order'), told)
    } catch (error) {
      if (!isOpen()) return say($('order'), `${title}: ${error.message}`)
      say($('ask-error'), error.message)
      dialog.forget()
    } finally {
      if (proposal === proposals) $('ask-yes').disabled = false
    }
  }
  dialog.showModal()
}

async function send(path, method, body) {
  let answer
  try {
    answer = await ask(path, {method, body: body && JSON.stringify(body)})
  } catch {
    throw new Error('the frontend does not answer; whether it was done, the page will show')
  }
  const said = await answer.json()
  if (!answer.ok) throw Object.assign(new Error(said.error.message), {isRefusal: [401, 403].includes(answer.status)})
  return said
}

let followed = 0  // the change whose way is told; a later one takes its place

async function followChange(number) {
  followed = number
  for (let looks = 0, missed = 0; followed === number && looks < LOOKS_MAX && missed < GONE_AFTER; looks++) {
    await new Promise(resolve => setTimeout(resolve, LOOK_MS))
    try {
      const {change, earlier} = await send('revisions', 'GET')
      const found = [change, ...earlier].find(each => each?.number === number)
      if (followed !== number) return
      missed = found ? 0 : missed + 1
      if (!found) continue
      say($('order'), `${found.what}: ${found.stage}${found.why ? `: ${found.why}` : ''}${found.lines.length ? ` (${found.lines.at(-1)})` : ''}`)
      if (found.stage !== 'running') return
    } catch (error) {
      say($('order'), `change ${number}: ${error.message}`)
      if (error.isRefusal) return
    }
  }
}
