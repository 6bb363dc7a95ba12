// Annotations on lines over time, drawn by hand: Grafana's own are in its program.
import { type TimeRange } from '@grafana/data';
import { useTheme2 } from '@grafana/ui';
import { useLayoutEffect } from 'react';
import { ask } from './prometheus';
import { type Variable, replace } from './variables';

/** The beginning of something that an annotation tells of, in milliseconds. */
export interface Moment {
  at: number;
  color: string;
}

/** Ask the annotations of *dashboard* that come from Prometheus. */
export async function readMoments(dashboard: any, range: TimeRange, variables: Variable[]): Promise<Moment[]> {
  const queries = dashboard.annotations.list.filter((one: any) => one.enable && one.expr);
  const answers = await Promise.all(
    queries.map(async ({ expr, iconColor }: any) => {
      const { result } = await ask('query_range', {
        query: replace(expr, variables), step: '60',
        start: String(range.from.unix()), end: String(range.to.unix()),
      });
      return result.flatMap((one: any) => begins(one.values).map((at) => ({ at, color: iconColor })));
    })
  );
  return answers.flat();
}

function begins(samples: [number, string][]): number[] {
  return samples
    .map(([at]) => at)
    .filter((at, index, all) => index === 0 || at - all[index - 1] > 60)
    .map((at) => at * 1000);
}

/** Draw a dashed line and a small triangle for each moment. */
export function Annotations({ config, moments }: { config: any; moments: Moment[] }) {
  const theme = useTheme2();
  useLayoutEffect(() => {
    config.addHook('draw', (plot: any) => {
      const { ctx, bbox } = plot;
      const scale = devicePixelRatio;
      for (const { at, color } of moments) {
        const x = plot.valToPos(at, 'x', true);
        if (x < bbox.left || x > bbox.left + bbox.width) {
          continue;
        }
        const bottom = bbox.top + bbox.height;
        ctx.save();
        ctx.strokeStyle = ctx.fillStyle = theme.visualization.getColorByName(color);
        ctx.lineWidth = scale;
        ctx.setLineDash([5 * scale, 5 * scale]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bottom);
        ctx.stroke();
        ctx.beginPath();
        ctx.moveTo(x, bottom);
        ctx.lineTo(x - 4 * scale, bottom + 5 * scale);
        ctx.lineTo(x + 4 * scale, bottom + 5 * scale);
        ctx.fill();
        ctx.restore();
      }
    });
  }, [config, moments, theme]);
  return null;
}
