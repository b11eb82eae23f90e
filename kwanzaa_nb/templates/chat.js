'use strict';
const at = id => document.getElementById(id);
const form = document.forms[0], box = form.elements.question, button = form.querySelector('button'), turns = at('turns');
const written = new WeakMap(); // the JSON of each turn
const scroll = matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth';
let before = [], asking = null, took = '';

const seconds = since => { const many = Math.round((Date.now() - since) / 1000); return `${many} second${many === 1 ? '' : 's'}`; };
const tell = (told, failed = '') => { at('told').textContent = told; at('failed').textContent = failed; };

function add(got) {
  turns.insertAdjacentHTML('beforeend', got.html);
  const turn = turns.lastElementChild;
  written.set(turn, got.json);
  before.push(got.id);
  box.value = '';
  at('hint').hidden = true;
  turn.scrollIntoView({ behavior: scroll });
}

// Ask, and show that something happens while a model writes.
async function ask() {
  const question = box.value.trim(), since = Date.now(), own = new AbortController();
  if (asking) return;
  if (!question) { tell('', 'Write a question first.'); box.focus(); return; }
  asking = own;
  tell('Finding passages and writing an answer.');
  const tick = () => { at('clock').textContent = `${seconds(since)}${took && ` (the last answer took ${took})`}`; };
  const clock = setInterval(tick, 1000);
  tick();
  at('working').hidden = false;
  button.setAttribute('aria-disabled', 'true');
  try {
    const reply = await fetch('ask', { method: 'POST', headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ question, before }), signal: own.signal });
    const got = await reply.json();
    if (asking !== own) return;
    if (reply.ok) { add(got); took = seconds(since); tell('Answered.'); } else tell('', got.error);
  } catch (error) {
    if (asking === own) tell('', 'The chat does not answer any more: start kwanzaa chat again in its terminal, then ask again.');
  } finally {
    clearInterval(clock);
    if (asking === own) rest();
  }
}

function rest() {
  asking = null;
  at('working').hidden = true;
  button.removeAttribute('aria-disabled');
}

// A mark highlights its sentence; choosing it also goes there, and the sentence's own mark leads back.
function follow(mark, goes) {
  const turn = mark.closest('.turn'), sentence = turn.querySelector(`mark[data-marks~="${mark.dataset.mark}"]`);
  for (const other of turns.querySelectorAll('[aria-current]')) other.removeAttribute('aria-current');
  for (const other of turns.querySelectorAll('.now')) other.classList.remove('now');
  mark.setAttribute('aria-current', 'true');
  if (!sentence) return;
  sentence.classList.add('now');
  const list = sentence.closest('.passages');
  if (list.scrollHeight > list.clientHeight) {
    list.scrollTop += sentence.getBoundingClientRect().top - list.getBoundingClientRect().top - list.clientHeight / 3;
  }
  if (!goes) return;
  sentence.focus({ preventScroll: true });
  sentence.scrollIntoView({ block: 'nearest', behavior: scroll });
}

async function copy(turn, pressed) {
  const text = written.get(turn);
  try {
    await navigator.clipboard.writeText(text);
    tell('Copied.');
  } catch (error) { // a page that is neither on loopback nor encrypted may not write to the clipboard
    let shown = turn.querySelector('pre');
    if (!shown) { shown = document.createElement('pre'); shown.textContent = text; shown.tabIndex = 0; pressed.after(shown); }
    getSelection().selectAllChildren(shown);
    tell('The browser does not let a page copy: the JSON is selected, copy it by hand.');
  }
}

turns.addEventListener('focusin', event => { if (event.target.matches('.there')) follow(event.target, false); });
turns.addEventListener('click', event => {
  const pressed = event.target.closest('button'), turn = event.target.closest('.turn');
  if (!pressed) return;
  if (pressed.matches('.there')) follow(pressed, true);
  if (pressed.matches('.back')) turn.querySelector(`.there[data-mark="${pressed.dataset.mark}"]`)?.focus();
  if (pressed.matches('.copy')) copy(turn, pressed);
});
form.addEventListener('submit', event => { event.preventDefault(); ask(); });
box.addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
at('new').addEventListener('click', () => {
  asking?.abort();
  rest();
  before = [];
  turns.replaceChildren();
  at('hint').hidden = false;
  tell('A new conversation.');
  box.focus();
});
box.focus();
