import { viewsEqualTheirQueries } from './random-views.ts';

viewsEqualTheirQueries((version) => version !== 15);
