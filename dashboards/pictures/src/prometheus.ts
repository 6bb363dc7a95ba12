// Queries, and the frames that Grafana's Prometheus data source would make of the answers.
import { type DataFrame, FieldType, type TimeRange, rangeUtil, toDataFrame } from '@grafana/data';
import { type Variable, replace } from './variables';

const page = new URLSearchParams(location.search);
const server = page.get('prometheus')!;

/** How often it scrapes; a data source of Grafana is told that, too. */
const SCRAPE_SECONDS = Number(page.get('scrape') ?? 15);

/** Return the data of an answer. */
export async function ask(path: string, parameters: Record<string, string> = {}): Promise<any> {
  const response = await fetch(`${server}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  if (answer.status !== 'success') {
    throw new Error(`${answer.error}: ${JSON.stringify(parameters)}`);
  }
  return answer.data;
}

/** Ask all that *panel* asks, at its width in pixels. */
export async function readFrames(panel: any, width: number, range: TimeRange, variables: Variable[]) {
  const targets = panel.targets ?? [];
  const tables = targets.filter((target: any) => target.format === 'table').length;
  const answers = await Promise.all(
    targets.map((target: any) => readTarget(target, panel.interval, tables, width, range, variables))
  );
  return answers.flat();
}

async function readTarget(
  target: any, atLeast: string | undefined, tables: number, width: number, range: TimeRange, variables: Variable[]
): Promise<DataFrame[]> {
  const seconds = (range.to.valueOf() - range.from.valueOf()) / 1000;
  const least = target.interval || atLeast || `${SCRAPE_SECONDS}s`;
  const step = rangeUtil.calculateInterval(range, Math.floor(width), least).intervalMs / 1000;
  const rate = Math.max(step + SCRAPE_SECONDS, 4 * SCRAPE_SECONDS);
  const query = replace(target.expr, [
    ...variables,
    { name: '__rate_interval', value: `${rate}s` },
    { name: '__interval', value: `${step}s` },
    { name: '__range', value: `${Math.round(seconds)}s` },
    { name: '__range_s', value: `${Math.round(seconds)}` },
  ]);
  const end = range.to.valueOf() / 1000;
  if (target.instant) {
    const { result } = await ask('query', { query, time: String(end) });
    return target.format === 'table'
      ? [asTable(result, target.refId, tables)]
      : result.map((one: any) => asSeries(one.metric, [one.value], target, query, step));
  }
  const start = range.from.valueOf() / 1000;
  const aligned = { start: Math.floor(start / step) * step, end: Math.floor(end / step) * step };
  const { result } = await ask('query_range', {
    query, step: String(step), start: String(aligned.start), end: String(aligned.end),
  });
  return result.map((one: any) => asSeries(one.metric, one.values, target, query, step));
}

type Sample = [number, string];

function asSeries(labels: Record<string, string>, samples: Sample[], target: any, query: string, step: number) {
  const legend = target.legendFormat ?? '__auto';
  const name =
    legend !== '__auto'
      ? legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_: string, label: string) => labels[label] ?? '')
      : Object.keys(labels).length === 0
        ? query
        : undefined; // Grafana then finds a name in what differs
  return toDataFrame({
    refId: target.refId,
    name,
    fields: [
      // With the interval, a line is interrupted where a sample is missing.
      { name: 'Time', type: FieldType.time, values: samples.map(([at]) => at * 1000), config: { interval: step * 1000 } },
      {
        name: 'Value',
        type: FieldType.number,
        labels,
        values: samples.map(([, value]) => toNumber(value)),
        config: { displayNameFromDS: name },
      },
    ],
  });
}

function asTable(result: { metric: Record<string, string>; value: Sample }[], refId: string, tables: number) {
  const labels = [...new Set(result.flatMap((one) => Object.keys(one.metric)))].sort();
  return toDataFrame({
    refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: result.map((one) => one.value[0] * 1000) },
      ...labels.map((label) => ({
        name: label, type: FieldType.string, values: result.map((one) => one.metric[label] ?? ''),
        config: { filterable: true },
      })),
      {
        name: tables > 1 ? `Value #${refId}` : 'Value',
        type: FieldType.number,
        values: result.map((one) => toNumber(one.value[1])),
      },
    ],
  });
}

function toNumber(text: string): number {
  return text.endsWith('Inf') ? (text.startsWith('-') ? -Infinity : Infinity) : Number(text);
}
