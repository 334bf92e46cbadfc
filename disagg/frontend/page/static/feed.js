// The frontend's events, by fetch: it can send a key, which EventSource cannot. Comes back by itself when it breaks.

const KEY = 'disagg-key'
const SILENT_MS = 10000  // a tick comes each second
const AGAIN_MS = 1000

export const forgetKey = () => sessionStorage.removeItem(KEY)
export const keepKey = key => sessionStorage.setItem(KEY, key)

export function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY)
  return fetch(path, {...options, cache: 'no-store', headers: key ? {authorization: `Bearer ${key}`} : {}})
}

/** Calls `on.event(data)` for each, `on.link(state)` as it comes and goes, and `on.refused(why, hadKey)`, which ends it. */
export async function follow(on) {
  for (;;) {
    const silence = new AbortController()
    let timer = setTimeout(() => silence.abort(), SILENT_MS)
    try {
      const answer = await ask('events', {signal: silence.signal})
      if (answer.status === 401 || answer.status === 403) {
        const said = await answer.json()
        return on.refused(said.error.message, sessionStorage.getItem(KEY) !== null)
      }
      if (!answer.ok) throw new Error((await answer.json()).error.message)
      on.link('live')
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
      let text = ''
      for (let part; !(part = await reader.read()).done;) {
        clearTimeout(timer)
        timer = setTimeout(() => silence.abort(), SILENT_MS)
        const events = (text + part.value).split('\n\n')
        text = events.pop()
        for (const event of events) {
          const data = event.split('\n').find(line => line.startsWith('data: '))
          if (data) on.event(JSON.parse(data.slice(6)))
        }
      }
      on.link('lost', 'the frontend ended it')
    } catch (error) {
      on.link('lost', error.name === 'AbortError' ? 'no sign for 10 s' : error.message)
    } finally {
      clearTimeout(timer)
    }
    await new Promise(resolve => setTimeout(resolve, AGAIN_MS))
  }
}
