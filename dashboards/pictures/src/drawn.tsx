// Panels that are not in Grafana's library, drawn simply: heatmap, state timeline, list of alerts.
import { type TimeRange, dateTimeFormat, formattedValueToString, getDisplayProcessor, getValueFormat } from '@grafana/data';
import { Badge, useTheme2 } from '@grafana/ui';
import { interpolateOranges } from 'd3-scale-chromatic';
import { useEffect, useRef } from 'react';
import { type PanelProps } from './panels';

const AXIS_HEIGHT = 22;

interface Bucket {
  bound: number;
  /** By time in milliseconds. */
  values: Map<number, number>;
}

/** Grafana gets buckets that hold all below their bound, and takes from each what the one below has. */
function separate(frames: PanelProps['frames']): Bucket[] {
  const cumulative = frames
    .map(({ fields: [time, value] }) => ({
      bound: value.labels!.le === '+Inf' ? Infinity : Number(value.labels!.le),
      values: new Map<number, number>(time.values.map((at: number, index: number) => [at, value.values[index]])),
    }))
    .sort((one, other) => one.bound - other.bound);
  return cumulative.map(({ bound, values }, index) => ({
    bound,
    values: new Map([...values].map(([at, all]) => [at, all - (cumulative[index - 1]?.values.get(at) ?? 0)])),
  }));
}

export function Heatmap({ panel, frames, range, width, height }: PanelProps) {
  const theme = useTheme2();
  const canvas = useRef<HTMLCanvasElement>(null);
  const buckets = separate(frames);
  const times = [...new Set(buckets.flatMap(({ values }) => [...values.keys()]))].sort((one, other) => one - other);
  const step = Math.min(...times.slice(1).map((at, index) => at - times[index]));
  const { color, cellGap = 1, filterValues, yAxis, cellValues } = panel.options;
  const shown = buckets.flatMap(({ values }) => [...values.values()]).filter((value) => value > (filterValues?.le ?? 0));
  const largest = Math.max(...shown);
  const paint = (share: number) => {
    const stepped = Math.round(share * (color.steps - 1)) / (color.steps - 1);
    // In the dark theme Grafana turns this palette round: what is much shines.
    return interpolateOranges(1 - stepped);
  };
  const format = (unit: string, value: number) => formattedValueToString(getValueFormat(unit)(value));
  const left = 56;
  const plot = { width: width - left - 4, height: height - AXIS_HEIGHT - 24 };
  const rowHeight = plot.height / buckets.length;
  const every = Math.ceil(14 / rowHeight);

  useEffect(() => {
    const context = canvas.current!.getContext('2d')!;
    const scale = devicePixelRatio;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const x = (at: number) => left + ((at - range.from.valueOf()) / (range.to.valueOf() - range.from.valueOf())) * plot.width;
    buckets.forEach(({ values }, row) => {
      const top = plot.height - (row + 1) * rowHeight;
      for (const [at, value] of values) {
        if (value > (filterValues?.le ?? 0) && at > range.from.valueOf()) {
          context.fillStyle = paint(value / largest);
          const from = Math.round(Math.max(x(at - step), left));
          context.fillRect(from, top, Math.max(Math.round(x(at)) - from - cellGap, 1), rowHeight - cellGap);
        }
      }
    });
    context.fillStyle = theme.colors.text.primary;
    context.font = `12px ${theme.typography.fontFamily}`;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    buckets.forEach(({ bound }, row) => {
      if ((row + 1) % every === 0 && bound !== Infinity) {
        const y = plot.height - (row + 1) * rowHeight;
        context.fillText(format(yAxis.unit, bound), left - 6, Math.max(y, 6));
      }
    });
    context.textAlign = 'center';
    for (const [at, text] of ticks(range, plot.width)) {
      context.fillText(text, x(at), plot.height + 12);
    }
  });

  return (
    <div>
      <canvas
        ref={canvas} width={width * devicePixelRatio} height={(height - 24) * devicePixelRatio}
        style={{ width, height: height - 24, display: 'block' }}
      />
      <div style={{ display: 'flex', gap: 8, alignItems: 'center', marginLeft: left, fontSize: 12, height: 24 }}>
        <span>{format(cellValues.unit, 0)}</span>
        <div
          style={{
            width: 220, height: 8,
            background: `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(paint).join(', ')})`,
          }}
        />
        <span>{format(cellValues.unit, largest)}</span>
      </div>
    </div>
  );
}

export function StateTimeline({ panel, frames, range, width, height }: PanelProps) {
  const theme = useTheme2();
  const rows = frames.map((frame) => {
    const [time, value] = frame.fields;
    const display = getDisplayProcessor({ field: value, theme });
    const colors = value.values.map((one: number) => display(one).color!);
    return { name: value.config.displayNameFromDS ?? value.name, bands: bands(time.values, colors, time.config.interval!) };
  });
  const left = Math.min(12 + 7 * Math.max(...rows.map(({ name }) => name.length)), width * 0.5);
  const plot = { width: width - left - 4, height: height - AXIS_HEIGHT };
  const x = (at: number) => left + Math.max(0, ((at - range.from.valueOf()) / (range.to.valueOf() - range.from.valueOf())) * plot.width);
  const rowHeight = plot.height / rows.length;
  const bar = rowHeight * (panel.options.rowHeight ?? 0.9);
  return (
    <svg width={width} height={height} style={{ display: 'block', fontSize: 12, fill: theme.colors.text.primary }}>
      {rows.map(({ name, bands }, row) => (
        <g key={name}>
          <text x={left - 8} y={(row + 0.5) * rowHeight} textAnchor="end" dominantBaseline="middle">{name}</text>
          {bands.map(({ from, to, color }) => (
            <rect
              key={from} x={x(from)} width={Math.max(0, Math.min(x(to), left + plot.width) - x(from))}
              y={row * rowHeight + (rowHeight - bar) / 2} height={bar} fill={color}
              fillOpacity={(panel.fieldConfig.defaults.custom?.fillOpacity ?? 70) / 100}
            />
          ))}
        </g>
      ))}
      {ticks(range, plot.width).map(([at, text]) => (
        <text key={at} x={x(at)} y={height - 6} textAnchor="middle">{text}</text>
      ))}
    </svg>
  );
}

interface Band {
  from: number;
  to: number;
  color: string;
}

/** Put neighbours of one colour together. */
function bands(times: number[], colors: string[], step: number): Band[] {
  const found: Band[] = [];
  times.forEach((at, index) => {
    const last = found.at(-1);
    if (last && last.color === colors[index] && last.to >= at) {
      last.to = at + step;
    } else {
      found.push({ from: at, to: at + step, color: colors[index] });
    }
  });
  return found;
}

export interface FiringAlert {
  labels: Record<string, string>;
  annotations: Record<string, string>;
  state: string;
  activeAt: string;
}

export function AlertList({ alerts, range }: { alerts: FiringAlert[]; range: TimeRange }) {
  const theme = useTheme2();
  return (
    <div style={{ height: '100%', overflow: 'hidden' }}>
      {alerts.map((alert) => {
        const minutes = Math.max(0, Math.round((range.to.valueOf() - Date.parse(alert.activeAt)) / 60_000));
        const firing = alert.state === 'firing';
        return (
          <div
            key={JSON.stringify(alert.labels)}
            style={{ display: 'flex', gap: 8, padding: '4px 8px', marginBottom: 4, background: theme.colors.background.secondary }}
          >
            <div style={{ flex: 1, minWidth: 0 }}>
              <div style={{ fontWeight: 500 }}>{alert.labels.alertname}</div>
              <div style={{ fontSize: 12, color: theme.colors.text.secondary, overflow: 'hidden', textOverflow: 'ellipsis', whiteSpace: 'nowrap' }}>
                {alert.annotations.summary}
              </div>
            </div>
            <div style={{ textAlign: 'right', fontSize: 12, color: theme.colors.text.secondary }}>
              <Badge color={firing ? 'red' : 'orange'} text={firing ? 'Firing' : 'Pending'} />
              <div>{alert.labels.severity}, for {minutes}m</div>
            </div>
          </div>
        );
      })}
    </div>
  );
}

/** Return times that are round, and what to write there. */
function ticks(range: TimeRange, width: number): [number, string][] {
  const from = range.from.valueOf();
  const to = range.to.valueOf();
  const minutes = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360].find((one) => ((to - from) / 60_000 / one) * 60 < width) ?? 720;
  const found: [number, string][] = [];
  for (let at = Math.ceil(from / 60_000 / minutes) * minutes * 60_000; at <= to - (to - from) / 40; at += minutes * 60_000) {
    found.push([at, dateTimeFormat(at, { format: 'HH:mm', timeZone: 'utc' })]);
  }
  return found;
}
