// The variables of a dashboard, and everything that is written with a dollar sign.
import { ask } from './prometheus';

export interface Variable {
  name: string;
  label: string;
  hidden: boolean;
  /** What the bar shows. */
  text: string;
  /** What stands for it in a query. */
  value: string;
}

/** Return the variables of *dashboard*: All where a variable has it, else what *given* says, else the first value. */
export async function readVariables(dashboard: any, given: URLSearchParams): Promise<Variable[]> {
  const found: Variable[] = [];
  for (const { name, label, hide, type, ...one } of dashboard.templating.list) {
    const start = { name, label: label ?? name, hidden: hide === 2 };
    const chosen = given.get(`var-${name}`);
    if (chosen) {
      found.push({ ...start, text: chosen, value: chosen });
    } else if (one.includeAll) {
      const values = one.allValue ? [] : await labelValues(replace(one.query, found));
      found.push({ ...start, text: 'All', value: one.allValue || `(${values.join('|')})` });
    } else if (type === 'query') {
      const [first = ''] = await labelValues(replace(one.query, found));
      found.push({ ...start, text: first, value: first });
    } else if (type === 'datasource') {
      found.push({ ...start, text: 'Prometheus', value: 'prometheus' });
    } else if (type === 'adhoc') {
      found.push({ ...start, text: '+', value: '' });
    } else {
      const value = String(one.current?.value ?? one.query.split(',')[0]);
      found.push({ ...start, text: value, value });
    }
  }
  return found;
}

/** Put variables into *text*: `$name`, `${name}` and `${name:format}`. Others stay as they are. */
export function replace(text: string, variables: Pick<Variable, 'name' | 'value'>[]): string {
  const values = new Map(variables.map(({ name, value }) => [name, value]));
  return text.replace(/\$(?:\{(\w+)(?::(\w+))?\}|(\w+))/g, (whole, braced, format, plain) => {
    const name = braced ?? plain;
    const value = values.get(name);
    if (value === undefined) {
      return whole;
    }
    return format === 'queryparam' ? `var-${name}=${encodeURIComponent(value)}` : value;
  });
}

async function labelValues(query: string): Promise<string[]> {
  const [, selector, label] = /^label_values\((.*), (\w+)\)$/s.exec(query)!;
  const series = await ask('series', { 'match[]': selector });
  return [...new Set<string>(series.map((one: Record<string, string>) => one[label]))].filter(Boolean).sort();
}
