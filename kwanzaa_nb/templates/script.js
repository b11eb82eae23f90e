'use strict';
const make = (tag, ...content) => { const node = document.createElement(tag); node.append(...content); return node; };

// A click on a heading sorts; numbers sort as numbers, and what is empty stands last.
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.firstElementChild?.addEventListener('click', () => {
    const down = head.ariaSort === 'ascending', key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
    for (const other of heads) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const order = (left, right) => {
      const [one, two] = [key(left), key(right)];
      if (!one || !two) return !one - !two;
      return (down ? -1 : 1) * (isNaN(one) || isNaN(two) ? one.localeCompare(two) : one - two);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}

// A filter shows the records whose facts, for the chosen arm, are those that were chosen, and whose text has what is sought.
for (const form of document.querySelectorAll('form.filter')) {
  const records = [...document.querySelectorAll('[data-facts]')].map(node => (
    { node, facts: JSON.parse(node.dataset.facts), text: node.textContent.toLowerCase() }));
  const show = () => {
    const { arm, search, ...wanted } = Object.fromEntries(new FormData(form));
    let shown = 0;
    for (const { node, facts, text } of records) {
      const known = { ...facts, ...facts.arms[arm] };
      const fits = Object.entries(wanted).every(([name, value]) => value === 'all' || [known[name]].flat().includes(value));
      node.hidden = !fits || !text.includes(search.toLowerCase());
      shown += !node.hidden;
    }
    form.querySelector('output').textContent = `${shown} of ${records.length} records`;
  };
  form.addEventListener('input', show);
  form.addEventListener('submit', event => event.preventDefault());
  show();
}

// Two runs side by side: the settings and the metrics in which they differ.
for (const form of document.querySelectorAll('form.compare')) {
  const runs = JSON.parse(document.getElementById('data').textContent), out = document.getElementById('compared');
  const text = value => value === undefined ? 'not set' : typeof value === 'string' ? value : JSON.stringify(value);
  const table = (heads, rows) => {
    const made = make('table', make('thead', make('tr', ...heads.map(head => make('th', head)))),
      make('tbody', ...rows.map(row => make('tr', ...row.map(cell => make('td', cell))))));
    const box = make('div', made);
    box.className = 'wide';
    box.tabIndex = 0;
    return box;
  };
  const both = (one, two) => [...new Set([...Object.keys(one ?? {}), ...Object.keys(two ?? {})])];
  const compare = () => {
    const [one, two] = [runs[form.first.value], runs[form.second.value]];
    if (!one || !two) return;
    const settings = both(one.settings, two.settings).sort().filter(key => !['run.name', 'run.output_dir'].includes(key))
      .map(key => [key, text(one.settings[key]), text(two.settings[key])]).filter(([, left, right]) => left !== right);
    const metrics = both(one.rates, two.rates).flatMap(arm => both(one.rates[arm], two.rates[arm]).map(
      name => [arm, name, ...[one, two].map(run => run.rates[arm]?.[name]?.text ?? 'not run')]));
    out.replaceChildren(
      make('h3', 'Settings that differ'), settings.length ? table(['setting', one.folder, two.folder], settings) : make('p', 'None.'),
      make('h3', 'Metrics'), metrics.length ? table(['arm', 'metric', one.folder, two.folder], metrics) : make('p', 'Neither was evaluated.'));
  };
  form.addEventListener('input', compare);
  form.addEventListener('submit', event => event.preventDefault());
  compare();
}
